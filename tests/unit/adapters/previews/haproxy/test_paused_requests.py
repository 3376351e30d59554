"""A host with paused requests is reported once, while requests wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from builderd.adapters.previews.haproxy.pause import PausedRequests


class Side:
    """The proxy's side of the socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.paused = PausedRequests(path)
        #: One that nobody holds would be closed.
        self._open: list[asyncio.StreamWriter] = []

    async def comes(self, host: str) -> asyncio.StreamWriter:
        _, writer = await asyncio.open_unix_connection(self._path)
        self._open.append(writer)
        writer.write(f"{host}\n".encode())
        while host not in self.paused._connections:
            await asyncio.sleep(0.001)
        return writer

    async def leaves(self, host: str, writer: asyncio.StreamWriter) -> None:
        writer.close()
        while host in self.paused._connections:
            await asyncio.sleep(0.001)


@pytest.fixture
async def side() -> AsyncIterator[Side]:
    # Short, because a Unix socket's path is.
    with TemporaryDirectory(prefix="previews-") as directory:
        made = Side(Path(directory) / "wake.sock")
        await made.paused.open(None)
        yield made
        await made.paused.close()


async def test_host_without_waiting_requests_is_not_reported(side: Side) -> None:
    for _ in range(3):
        writer = await side.comes("left.localhost")
        await side.leaves("left.localhost", writer)
    await side.comes("here.localhost")
    assert await anext(aiter(side.paused.hosts())) == "here.localhost"


async def test_a_host_is_queued_once_until_it_is_taken(side: Side) -> None:
    hosts = aiter(side.paused.hosts())
    await side.comes("a.localhost")
    for _ in range(3):
        side.paused.report_again("a.localhost")
    await side.comes("b.localhost")
    assert [await anext(hosts), await anext(hosts)] == ["a.localhost", "b.localhost"]
    side.paused.report_again("a.localhost")
    assert await anext(hosts) == "a.localhost"
