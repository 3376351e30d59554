"""The program of the helper instance runs with the modules that are sent, and nothing else."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

from builderd.adapters.engines.incus.helper import packed_program


def test_sent_modules_are_all_that_the_program_needs(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(packed_program())) as archive:
        archive.extractall(tmp_path)
    program = "builderd.adapters.engines.incus.helper_program"
    request = json.dumps({"volume": "none", "path": "", "skip": 0, "count": 1}).encode() + b"\n"
    # Isolated from installed packages, as in the instance.
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from {program} import main; main('list_files')"
    done = subprocess.run([sys.executable, "-ISc", code], input=request, capture_output=True, check=True)
    assert json.loads(done.stdout)["error"] == "OSError"
