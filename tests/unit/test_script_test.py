"""An interrupt of script/test ends its tests in the background, too; a test that passes when repeated fails its run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.parts import ROOT

SCRIPT = ROOT.parent / "script/test"
#: Plays Python: names a file for each part, and as pytest notes its part, and again when it is interrupted.
PYTHON = """\
#!/bin/bash
case "$*" in
  *tests/parts.py*) echo a_test.py ;;
  *"-m pytest"*)
    part=${4##*/}
    trap 'echo "$part ended" >>"$NOTES"; exit 2' INT
    echo "$part began" >>"$NOTES"
    for _ in $(seq 300); do sleep 0.1; done ;;
esac
"""
PARTS = ("heavy", "incus", "real")
#: Against hanging only.
MOST_SECONDS = 60


@pytest.mark.parametrize(
    ("number", "at_start"), [(signal.SIGINT, "--default-signal=INT"), (signal.SIGTERM, "--ignore-signal=INT")]
)
def test_interrupted_script_ends_all_its_parts(number: int, at_start: str, tmp_path: Path) -> None:
    python, notes = tmp_path / "venv/bin/python", tmp_path / "notes"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    env = {**os.environ, "BUILDERD_VENV": str(tmp_path / "venv"), "TMPDIR": str(tmp_path), "NOTES": str(notes)}
    words = ["env", at_start, str(SCRIPT)]
    script = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(notes, "began")
        script.send_signal(number)
        assert script.wait(MOST_SECONDS) == 130
        wait_for(notes, "ended")
    finally:
        script.kill()
        script.wait()


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


def wait_for(notes: Path, what: str) -> None:
    """Wait until each part has noted this."""
    deadline = time.monotonic() + MOST_SECONDS
    while not notes.exists() or not {f"{part} {what}" for part in PARTS} <= set(notes.read_text().splitlines()):
        assert time.monotonic() < deadline, notes.exists() and notes.read_text()
        time.sleep(0.05)
