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


def test_the_client_works_without_what_only_linux_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, file in (("app", "main.py"), ("job", "job.py")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("print('hello')\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BUILDERD_", "XDG_"))}
    hurry(monkeypatch.setattr)
    with threaded_service() as running:
        job = Behaviour(listens_at=None, exits_at=1, exit_code=4, lines=("from the job",))
        running.service.engine.behave("python3 job.py", job)
        done = subprocess.run(
            [sys.executable, str(PROGRAM), running.url, running.admin],
            env={**environment, "HOME": str(tmp_path)},
            cwd=tmp_path / "app",
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stdout + done.stderr
