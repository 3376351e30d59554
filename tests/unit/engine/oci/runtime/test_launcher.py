"""The launcher's server without root, the log of a build as it grows, streams of a process, and listening sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from builderd.engine.oci.runtime import listening
from builderd.engine.oci.runtime.launcher import Server
from builderd.engine.oci.runtime.launching import Runtime
from builderd.engine.oci.runtime.listening import ListeningPorts, parse_listening
from builderd.engine.oci.runtime.records import Record
from builderd.engine.oci.runtime.runner import LEFT_OUT, PIECE_BYTES, Tail
from builderd.engine.oci.runtime.streams import Console, Outlet
from builderd.executions.model import Window


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
    "network": None,
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


@pytest.fixture
def flood() -> Iterator[int]:
    """A pipe that is never empty for long."""
    read, write = os.pipe2(os.O_CLOEXEC)

    def fill() -> None:
        try:
            while True:
                os.write(write, bytes(1 << 16))
        except BrokenPipeError:
            os.close(write)

    filling = threading.Thread(target=fill, daemon=True)
    filling.start()
    yield read
    filling.join(10)


async def test_reading_a_flood_does_not_block_others(flood: int) -> None:
    outlet = Outlet(flood, asyncio.get_running_loop().create_future())
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(turn())
    for _ in range(50):
        assert await outlet.read()
    assert turns >= 50
    other.cancel()
    outlet.close()


@pytest.mark.parametrize("ends", [True, False], ids=["its runtime ended", "who waited left"])
async def test_closed_console_is_not_watched(ends: bool, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    console = Console(tmp_path / "tty")
    watched: list[bool] = []

    async def wait() -> None:
        try:
            await console.receive(Window(), ended)
        finally:
            watched.append(loop.remove_reader(console._listener.fileno()))
            console.close()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0.01)
    if ends:
        ended.set_result(0)
    else:
        waiting.cancel()
    await asyncio.wait({waiting})
    assert watched == [False]


TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000000000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 00000000000000000000000001000000:0BB9 00000000000000000000000000000000:0000 0A 00000000:00000000
   2: 0000000000000000FFFF00000100007F:0BBA 00000000000000000000000000000000:0000 0A 00000000:00000000
"""


def test_ipv6_and_ipv4_within_it() -> None:
    assert parse_listening(TCP6) == {("::", 3000), ("::1", 3001), ("::ffff:127.0.0.1", 3002)}


async def test_sockets_are_cached_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []

    async def answers(*_: object) -> bool:
        return False

    async def look(_: object, record: Record) -> frozenset[tuple[str, int]]:
        looks.append(record.id)
        return frozenset({("127.0.0.1", 3000)})

    commands = SimpleNamespace(runtime=lambda _: Runtime("runsc", "/usr/bin/runsc", Path("/run")))
    runs: Any = SimpleNamespace(commands=commands, records=SimpleNamespace(now=time.time))
    listening_ports = ListeningPorts(runs)
    monkeypatch.setattr(listening, "_answers", answers)
    monkeypatch.setattr(ListeningPorts, "_read", look)
    records = [Record(name, "owner", "disk", "runsc", 0, "10.64.8.2", 8000, "boot") for name in ("a", "b", "c")]
    for record in (*records, *records):
        assert await listening_ports.of(record, 8000) == {("127.0.0.1", 3000)}
    assert looks == ["a", "b", "c"]
    monkeypatch.setattr(listening, "_CACHE_SECONDS", 0)
    await listening_ports.of(records[0], 8000)
    assert list(listening_ports._results) == ["a"]
