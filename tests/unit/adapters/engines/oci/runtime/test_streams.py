"""The streams of a process, in an event loop that has others to serve as well."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from builderd.adapters.engines.oci.runtime.streams import Console, Outlet
from builderd.domain.processes import Window


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
