"""The tests that failed in the last run, one on each line, told by pytest's cache: python tests/failed.py FOLDER"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    for test in json.loads((Path(sys.argv[1]) / "v/cache/lastfailed").read_text()):
        sys.stdout.write(f"{test}\n")
