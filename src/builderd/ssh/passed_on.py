"""Logins that a standby of the cluster passes on: each begins with the address of its client (a PROXY header).

They come over a Unix socket that only the previews' proxy can reach, so their header is believed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from types import TracebackType

from builderd.operations import proxy_header

log = logging.getLogger(__name__)
#: Seconds within which the header must come; the proxy sends it at once.
HEADER_SECONDS = 10.0
#: Seconds until the next try when no connection can be accepted, as without free descriptors.
RETRY = 1.0

#: Called with a connection, of which the header has been read, and its client's address; it owns the connection.
OnLogin = Callable[[socket.socket, str], Awaitable[None]]


class PassedOnLogins:
    """``async with``: at its end, nothing more is accepted, and logins that have not begun are dropped."""

    def __init__(self, listener: socket.socket, on_login: OnLogin) -> None:
        self._listener = listener
        self._on_login = on_login
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> PassedOnLogins:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def run(self) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                log.warning("login passed on not accepted, retrying delay=%g error=%s", RETRY, error)
                await asyncio.sleep(RETRY)
                continue
            task = asyncio.create_task(self._begin(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _begin(self, connection: socket.socket) -> None:
        try:
            async with asyncio.timeout(HEADER_SECONDS):
                header = await _read_header(connection)
        except (OSError, ValueError, TimeoutError):
            connection.close()
            return
        except asyncio.CancelledError:
            connection.close()
            raise
        await self._on_login(connection, header.client[0])


async def _read_header(connection: socket.socket) -> proxy_header.ProxyHeader:
    """Read the header, and nothing behind it. Raises ``ValueError`` for anything else."""
    loop, data = asyncio.get_running_loop(), bytearray()
    while (header := proxy_header.parse(data)) is None:
        missing = proxy_header.HEAD - len(data)
        if missing <= 0:
            missing = proxy_header.size(data) - len(data)
        piece = await loop.sock_recv(connection, missing)
        if not piece:
            raise ValueError("closed without a header")
        data += piece
    return header
