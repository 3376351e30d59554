"""A test of script/test that passes when repeated fails its run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.parts import ROOT

SCRIPT = ROOT.parent / "script/test"


#: Plays Python whose tests fail beside others and pass alone.
RACING = """\
#!/bin/bash
case "$*" in
  *tests/failed.py*) printf '%s\\n' $FAILED ;;
  *-again*) exit 0 ;;
  *"-m pytest"*) exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("failed", "code"),
    [
        ("tests/a.py::test_known", 0),
        ("tests/a.py::test_known[one]", 0),
        ("tests/a.py::test_known_not", 1),
        ("tests/a.py::test_known tests/a.py::test_other[x]", 1),
    ],
)
def test_test_that_passes_when_repeated_fails_the_run_unless_its_race_is_explained(
    failed: str, code: int, tmp_path: Path
) -> None:
    python, script, races = (tmp_path / one for one in ("venv/bin/python", "script/test", "tests/races.txt"))
    for file, text in ((python, RACING), (script, SCRIPT.read_text()), (races, "tests/a.py::test_known waits\n")):
        file.parent.mkdir(parents=True)
        file.write_text(text)
        file.chmod(0o755)
    env = {**os.environ, "BUILDERD_VENV": str(tmp_path / "venv"), "TMPDIR": str(tmp_path), "FAILED": failed}
    done = subprocess.run([script, "--fast", "-q"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert f"RACES, passes alone: {failed.rsplit(maxsplit=1)[-1]}" in done.stdout
