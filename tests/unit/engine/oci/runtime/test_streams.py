"""The streams of a process in an event loop that has others to serve as well, and listening sockets."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from builderd.engine.oci.runtime import listening
from builderd.engine.oci.runtime.launching import Runtime
from builderd.engine.oci.runtime.listening import ListeningPorts, parse_listening
from builderd.engine.oci.runtime.records import Record
from builderd.engine.oci.runtime.streams import Console, Outlet
from builderd.executions.model import Window


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


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0
   2: 0200400A:1F40 0100400A:D431 01 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000000000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 00000000000000000000000001000000:0BB9 00000000000000000000000000000000:0000 0A 00000000:00000000
   2: 0000000000000000FFFF00000100007F:0BBA 00000000000000000000000000000000:0000 0A 00000000:00000000
"""


def test_only_listening_sockets_are_returned() -> None:
    assert parse_listening(TCP) == {("0.0.0.0", 8000), ("127.0.0.1", 8080)}


def test_ipv6_and_ipv4_within_it() -> None:
    assert parse_listening(TCP6) == {("::", 3000), ("::1", 3001), ("::ffff:127.0.0.1", 3002)}


def test_both_files_one_after_the_other() -> None:
    assert len(parse_listening(TCP + TCP6)) == 5
    assert parse_listening("") == frozenset()


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
        assert await listening_ports.of(record) == {("127.0.0.1", 3000)}
    assert looks == ["a", "b", "c"]
    monkeypatch.setattr(listening, "_CACHE_SECONDS", 0)
    await listening_ports.of(records[0])
    assert list(listening_ports._results) == ["a"]
