"""SSH sessions when the service is killed: their processes go on, and one logs in again."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.acceptance.live_service import PATIENCE, LiveService
from tests.acceptance.scenarios import run
from tests.acceptance.ssh_box import Box, box_of

pytestmark = pytest.mark.root


@pytest.fixture
def box(service: LiveService, tmp_path: Path) -> Iterator[Box]:
    with box_of(service, tmp_path) as box:
        yield box


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_sessions_processes_go_on_when_the_service_is_killed(box: Box) -> None:
    """Processes of a command, and of a shell with nohup, are found after a new login."""
    lines = "for i in $(seq 1000000); do echo $i >>/app/work.log; sleep 0.1; done"
    command = ["ssh", *box.options, "-p", box.port, box.target, f"echo begun; {lines}"]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    controller, terminal = pty.openpty()
    shell = subprocess.Popen(
        ["ssh", "-tt", *box.options, "-p", box.port, box.target], stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == b"begun\n"
        os.write(controller, b"nohup sleep 3456 >/dev/null 2>&1 &\n")
        until(lambda: run(box.service, box.uuid, "pgrep -f '^sleep 3456'")[0] == 0)
        box.service.kill()
        assert client.wait(PATIENCE) == 255
        shell.wait(PATIENCE)
    finally:
        for process in (client, shell):
            process.kill()
            process.wait()
        os.close(controller)
        box.service.start()
    # The token is as valid as before. The port opens some time after the service answers.
    until(lambda: box.run("pgrep -f '^sleep 3456'").returncode == 0)
    before = int(box.run("tail -n 1 /app/work.log").stdout)
    until(lambda: int(box.run("tail -n 1 /app/work.log").stdout) > before)
    assert box.run("pkill -f '[w]ork.log'; pkill -f '^sleep 3456'").returncode == 0
    until(lambda: box.run("pgrep -f '^sleep 3456|[w]ork.log'").returncode == 1)
