"""Launcher's server without root: children, descriptors when it cannot fork, and the log of a build as it grows."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from builderd.engine.oci.runtime import launcher as attach_module
from builderd.engine.oci.runtime.launcher import Link, Server, attach
from builderd.engine.oci.runtime.runner import LEFT_OUT, PIECE_BYTES, Tail


def _server() -> tuple[Server, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Server(theirs), ours


RUN: dict[str, Any] = {
    "op": "run",
    "argv": ["/bin/true"],
    "env": {},
    "cwd": "/",
    "fds": [],
    "mounts": [],
    "cgroups": [],
    "uid": 1,
    "terminal": False,
    "oom_score": 0,
    "name": "one",
}


def test_without_a_child_no_descriptor_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    server, _ours = _server()
    monkeypatch.setattr(os, "fork", refuse)
    before = open_descriptors()
    with pytest.raises(BlockingIOError):
        server._handle({"id": 1, **RUN}, [])
    assert open_descriptors() == before


def test_a_child_that_cannot_be_watched_is_killed_and_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ours = _server()
    child = subprocess.Popen(["/bin/sleep", "1000"])

    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "fork", lambda *_: child.pid)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    before = open_descriptors()
    with pytest.raises(OSError, match="Too many open files"):
        server._handle({"id": 1, **RUN}, [])
    assert open_descriptors() == before
    assert not Path(f"/proc/{child.pid}").exists(), "killed and reaped"
    assert server._named == {}


def test_a_program_that_ends_leaves_its_name_to_the_one_that_took_it() -> None:
    server, _ours = _server()
    read, write = os.pipe()
    server._named["one"] = 18
    child = subprocess.Popen(["/bin/true"])  # without a name, Python itself would reap it
    server._ended({"id": 1, "name": "one"}, child.pid, read)
    assert server._named == {"one": 18}
    os.close(write)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def forbid(*_: object) -> int:
    raise AssertionError("done to the host")


def test_a_link_is_made_in_no_network_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("limit", "connect"):
        monkeypatch.setattr(attach_module, name, forbid)
    with pytest.raises(OSError, match="a process of the host"):
        attach(os.getpid(), Link("link", "lo", "02", "10.0.0.2", "10.0.0.1", 1500))


def record(text: str, flag: str = "F", stream: str = "stdout") -> bytes:
    return f"2026-07-01T00:00:00.000000000+00:00 {stream} {flag} {text}\n".encode()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def append(log: Path, content: bytes) -> None:
    with log.open("ab") as file:
        file.write(content)


async def test_lines_are_passed_on_complete_and_once(log: Path) -> None:
    told: list[str] = []
    tail = Tail(log, told.append)
    assert not tail.pass_on()
    whole = record("one ", "P") + record("error", stream="stderr") + record("line") + record("open", "P")
    for place in range(0, len(whole), 7):
        append(log, whole[place : place + 7])
        tail.pass_on()
    assert told == ["one ", "error", "line"]
    await tail.finish()
    assert told == ["one ", "error", "line", "open"]


async def test_flood_is_passed_on_in_pieces(log: Path) -> None:
    told: list[str] = []
    numbers = [str(number) for number in range(20_000)]
    append(log, b"".join(map(record, numbers)))
    tail = Tail(log, told.append)
    assert tail.pass_on()
    assert 0 < len(told) <= PIECE_BYTES / len(record("0"))
    await tail.finish()
    assert told == numbers


async def test_replaced_log_is_read_from_its_start(log: Path) -> None:
    told: list[str] = []
    append(log, record("a") + record("op", "P"))
    tail = Tail(log, told.append)
    tail.pass_on()
    append(log, record("en") + record("nobody came to read this"))
    append(log.with_name("new"), record("b"))
    log.with_name("new").rename(log)
    tail.pass_on()
    append(log, record("c"))
    await tail.finish()
    assert told == ["a", LEFT_OUT, "b", "c"]
