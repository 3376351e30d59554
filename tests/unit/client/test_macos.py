"""The client presumes no Linux: see ``on_macos`` for what is taken away from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.application import hurry
from tests.fakes.sandboxes import Behaviour
from tests.threaded_service import threaded_service

PROGRAM = Path(__file__).with_name("on_macos.py")


def run_program(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BUILDERD_", "XDG_"))}
    return subprocess.run(
        [sys.executable, *words],
        env={**environment, "HOME": str(home)},
        cwd=home / "app",
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for folder, file in (("app", "main.py"), ("job", "job.py")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("print('hello')\n")
    return tmp_path


def test_the_client_works_without_what_only_linux_has(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch.setattr)
    with threaded_service() as running:
        job = Behaviour(listens_at=None, exits_at=1, exit_code=4, lines=("from the job",))
        running.service.engine.behave("python3 job.py", job)
        done = run_program(home, str(PROGRAM), running.url, running.admin)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stdout + done.stderr


USES = [
    "open('/proc/self/status')",
    "os.listdir('/sys/class')",
    "import builderd.linux",
    "socket.socket(16)",
    "os.sched_getaffinity(0)",
    "socket.socket(socket.AF_UNIX).bind(chr(0) + 'x')",
    "subprocess.run(['xdg-open', '/'])",
]
UNNOTICED = f"""
import subprocess, sys
sys.path.insert(0, {str(PROGRAM.parent)!r})
from on_macos import *
take_away()
for use in {USES!r}:
    try:
        exec(use)
    except LinuxOnly:
        continue
    except AttributeError as error:
        if "sched_getaffinity" in str(error):
            continue
    print(use)
"""


def test_each_use_of_linux_is_noticed(home: Path) -> None:
    done = run_program(home, "-c", UNNOTICED)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
