"""Start ``builderd`` commands by forking a process that has imported them.

A start of the service takes 2.9 s of CPU, of which 2.3 s are imports; ``builderd down`` takes 3.3 s. The tests start
some two hundred. ``python -m tests.acceptance.forked FD`` is that process: it imports the commands, then forks for
each request that comes through its socket, and each fork runs ``builderd.cli.group`` as a fresh process would.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: What `builderd serve` and `builderd down` import, at once and later.
MODULES = (
    "builderd.cli.group",
    "builderd.cli.serve",
    "builderd.cli.machine",
    "builderd.bootstrap.run",
    "builderd.engine.oci.engine.engine",
)
#: Bytes of a number in the status pipe, and of the longest request.
NUMBER, REQUEST = 8, 1 << 16


class ForkedProcess:
    """A running command; the part of ``subprocess.Popen`` that the tests use."""

    def __init__(self, words: Sequence[str], pid: int, status: int) -> None:
        self.args = words
        self.pid = pid
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """The exit code once the process has ended, negative for a signal."""
        return self.returncode if self.returncode is not None else self._read(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; ``subprocess.TimeoutExpired`` after ``timeout`` seconds."""
        code = self.returncode if self.returncode is not None else self._read(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read(self, timeout: float | None) -> int | None:
        if select.select([self._status], [], [], timeout)[0]:
            self.returncode = os.waitstatus_to_exitcode(_number(self._status))
            os.close(self._status)
        return self.returncode


def start(words: Sequence[str], env: Mapping[str, str], output: int) -> ForkedProcess:
    """Start ``builderd WORDS``; both of its streams go to the descriptor ``output``, and it reads nothing."""
    status, reported = os.pipe()
    request = json.dumps({"words": list(words), "env": dict(env), "cwd": str(Path.cwd())}).encode()
    try:
        socket.send_fds(_forking_process(), [request], [output, reported])
    finally:
        os.close(reported)
    return ForkedProcess(words, _number(status), status)


def _number(pipe: int) -> int:
    number = os.read(pipe, NUMBER)
    assert number, "the process that forks has died"
    return int.from_bytes(number)


@functools.cache
def _forking_process() -> socket.socket:
    """One for each of pytest's processes, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [sys.executable, "-m", "tests.acceptance.forked", str(theirs.fileno())]
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(words, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL)
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def _serve(requests: socket.socket) -> None:
    """Fork for each request until the tests have closed the socket; returns in each forked command too."""
    # Waited for, so that what a service used is part of the process's own time, which tests/times.py reads.
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, REQUEST, 2)
        if not request:
            return None
        if os.fork() == 0:
            requests.close()
            return _watch(json.loads(request), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _watch(request: Mapping[str, Any], output: int, report: int) -> None:
    """Fork the command, report its pid and its wait status as only a parent can; returns in the command alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(report)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        return _run(request)
    os.close(output)
    os.write(report, pid.to_bytes(NUMBER))
    os.write(report, os.waitpid(pid, 0)[1].to_bytes(NUMBER))
    os._exit(0)


def _run(request: Mapping[str, Any]) -> None:
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["builderd", *request["words"]]
    import_module("builderd.cli.group").builderd(prog_name="builderd")


if __name__ == "__main__":
    for module in MODULES:
        import_module(module)
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
