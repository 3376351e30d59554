"""List the files that may hold tests with one of some markers, by their text: python tests/marked.py MARKER…

A test has a marker of its own file, or one of a fixture that a conftest.py beside or above it makes. Collecting only
these files saves each process of pytest importing the others. tests/conftest.py checks that none is missed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent


def may_have(path: Path, markers: Sequence[str]) -> bool:
    folders = [folder for folder in path.parents if folder.is_relative_to(ROOT) and folder != ROOT]
    return any(_names(file, *markers) for file in (path, *(folder / "conftest.py" for folder in folders)))


@cache
def _names(file: Path, *markers: str) -> bool:
    return file.exists() and re.search(rf"\bmark\.(?:{'|'.join(markers)})\b", file.read_text()) is not None


if __name__ == "__main__":
    for path in sorted(ROOT.rglob("test_*.py")):
        if may_have(path, sys.argv[1:]):
            sys.stdout.write(f"{path}\n")
