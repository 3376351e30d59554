"""The relay: forwards connections from inside a jail to the app's address, its only way out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from builderd.domain.previews import Address

#: Connections at the same time.
MAX_CONNECTIONS = 64
_CHUNK = 65_536


class Relay:
    """Accepts on a socket that listens in the jail's network namespace, and connects to the app from the host's."""

    def __init__(self, listener: socket.socket, address: Address) -> None:
        self._listener = listener
        self._address = address
        self._limit = asyncio.Semaphore(MAX_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._accept, sock=self._listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._limit:
                there, onward = await asyncio.open_connection(self._address.ip, self._address.port)
                try:
                    await _both(_copy(reader, onward), _copy(there, writer))
                finally:
                    onward.close()
        except OSError:
            pass  # the app is unreachable: the client sees its connection end
        finally:
            writer.close()


async def _both(*ways: Coroutine[Any, Any, None]) -> None:
    """Run both directions until they end, and cancel what is left."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await source.read(_CHUNK):
            target.write(chunk)
            await target.drain()
    with suppress(OSError):
        target.write_eof()
