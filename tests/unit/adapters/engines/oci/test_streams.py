"""The streams of a process, in an event loop that has others to serve as well."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from builderd.adapters.engines.oci.streams import Outlet


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


async def test_who_reads_a_flood_keeps_nobody_waiting(flood: int) -> None:
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
