"""``shell`` and ``exec -it`` on a pseudo-terminal of their own, as a user's."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.fakes.processes import Answer, FakeProcess
from tests.threaded_service import Running

from builderd.cli.group import builderd
from builderd.executions.model import LOGIN_SHELL, Window

#: Against hanging only.
PATIENCE = 60.0
LOCAL_FLAGS = 3


class UsersTerminal:
    """A command on a pseudo-terminal, which is its controlling one."""

    def __init__(self, words: tuple[str, ...], rows: int, columns: int) -> None:
        self._master, self._slave = pty.openpty()
        termios.tcsetwinsize(self._master, (rows, columns))
        self.before = self.modes
        environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
        environment["PYTHONPATH"] = str(Path(__file__).parents[4] / "src")
        command = ["setsid", "--ctty", sys.executable, "-m", "builderd", *words]
        ends: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), self._slave)
        self._process = subprocess.Popen(command, env=environment, **ends)
        self._printed = b""

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self._master, (rows, columns))

    def read_until(self, text: bytes) -> bytes:
        """Return what is printed up to this text, and with it."""
        while text not in self._printed:
            assert select.select([self._master], [], [], PATIENCE)[0], self._printed
            self._printed += os.read(self._master, 4096)
        before, found, self._printed = self._printed.partition(text)
        return before + found

    def wait(self) -> int:
        return self._process.wait(PATIENCE)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)
        os.close(self._slave)


@contextmanager
def terminal(*words: str, rows: int = 30, columns: int = 100) -> Iterator[UsersTerminal]:
    opened = UsersTerminal(words, rows, columns)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def processes(running: Running, monkeypatch: pytest.MonkeyPatch) -> list[FakeProcess]:
    """Processes that are opened beside the app from now on."""
    assert CliRunner().invoke(builderd, ["deploy", "--yes"]).exit_code == 0
    opened: list[FakeProcess] = []
    engine: Any = running.service.engine
    original: Callable[..., Any] = engine.open_process

    @asynccontextmanager
    async def noted(*arguments: Any) -> AsyncIterator[FakeProcess]:
        async with original(*arguments) as process:
            opened.append(process)
            yield process

    monkeypatch.setattr(engine, "open_process", noted)
    return opened


def test_shell_passes_keys_and_window_on_and_exits_with_its_code(
    running: Running, processes: list[FakeProcess]
) -> None:
    running.service.engine.answer("/bin/bash --login", Answer(output="$ ", echoes=True, exit_code=3))
    with terminal("shell") as user:
        user.read_until(b"$ ")
        user.type(b"ls \xc3\xa9\x03\x04\x1b[A\r")
        # Once, from the sandbox: the user's terminal echoes nothing, and Ctrl-C and Ctrl-D are keys as any.
        printed = user.read_until(b"\x1b[A\r")
        assert printed.endswith(b"ls \xc3\xa9\x03\x04\x1b[A\r")
        user.resize(40, 120)
        (process,) = processes
        deadline = time.monotonic() + PATIENCE
        while process.windows[-1] != Window(120, 40):
            assert time.monotonic() < deadline, process.windows
            time.sleep(0.01)
        loop = process._ended.get_loop()
        loop.call_soon_threadsafe(process.close_input)
        assert user.wait() == 3
        assert user.modes[LOCAL_FLAGS] == user.before[LOCAL_FLAGS]
    (spec,) = running.service.engine.processes
    assert spec.argv == LOGIN_SHELL
    assert process.windows[0] == Window(100, 30)


def test_exec_it_runs_a_command_on_the_terminal(running: Running, processes: list[FakeProcess]) -> None:
    running.service.engine.answer("make 'a b'", Answer(7, "done\n"))
    with terminal("exec", "-it", ".", "--", "make", "a b") as user:
        user.read_until(b"done\n")
        assert user.wait() == 7
        assert user.modes[LOCAL_FLAGS] == user.before[LOCAL_FLAGS]
    (spec,) = running.service.engine.processes
    assert spec.window == Window(100, 30)


def test_terminal_of_a_missing_builder_leaves_the_users_as_it_was(running: Running) -> None:
    with terminal("shell", "nothing") as user:
        user.read_until(b"Error:")
        assert user.wait() == 1
        assert user.modes[LOCAL_FLAGS] == user.before[LOCAL_FLAGS]


def test_shell_without_a_terminal_is_a_usage_error(running: Running, processes: list[FakeProcess]) -> None:
    refused = CliRunner().invoke(builderd, ["shell"])
    assert refused.exit_code == 2
    assert "no terminal" in refused.stderr
    assert processes == []


@pytest.mark.parametrize(("words", "end"), [(["9000:8000"], "9000:localhost:8000"), (["8000"], "8000:localhost:8000")])
def test_port_forward_runs_ssh_with_the_gateways_key_checked(
    running: Running, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], end: str
) -> None:
    assert CliRunner().invoke(builderd, ["deploy", "--yes"]).exit_code == 0
    program = tmp_path / "bin/ssh"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@"\nfor one; do case $one in *known_hosts) cat "${one#*=}"; esac; done\nexit 7\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    command = [sys.executable, "-m", "builderd", "port-forward", "my-app", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 7
    lines = done.stdout.splitlines()
    assert lines[lines.index("-L") + 1] == f"127.0.0.1:{end}"
    assert "StrictHostKeyChecking=yes" in lines
    assert any("@" in line for line in lines), lines
    assert any("ssh-ed25519" in line for line in lines)
    assert "Ctrl-C ends it" in done.stderr
