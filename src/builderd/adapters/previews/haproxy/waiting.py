"""Visitors who wait: the proxy's side (``hold.lua``) tells of a host over a Unix socket, and is told when it may go on.

One connection a host, however many wait: the proxy writes the host and a line feed, and reads the route, as the map has
it, once that holds nobody any more, or the name of a page for those who wait now. A connection that breaks is opened
again for as long as somebody waits, so neither side need remember anything over the other's restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

from builderd.domain.previews import RouteState

#: Routes that requests wait at.
HOLDING = frozenset({RouteState.HELD, RouteState.ASLEEP})
#: A host name has 253 bytes at most.
_LINE = 512


class Waiting:
    """The socket, and who waits on it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._waiting: defaultdict[str, set[asyncio.StreamWriter]] = defaultdict(set)
        self._hosts: asyncio.Queue[str] = asyncio.Queue()

    async def open(self, user: str | None) -> None:
        """Listen, for this user of the machine beside ourselves. Idempotent."""
        if self._server is not None and self._path.exists():
            return
        await self.close()
        # In a folder that nobody else may enter, beside the one that the proxy is locked into.
        unfinished = self._path.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, unfinished, limit=_LINE)
        unfinished.chmod(0o600)
        if user is not None:
            shutil.chown(unfinished, user)
        unfinished.replace(self._path)

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for writers in self._waiting.values():
            for writer in writers:
                writer.close()
        self._waiting.clear()

    async def hosts(self) -> AsyncIterator[str]:
        """A host as soon as somebody waits for it."""
        while True:
            yield await self._hosts.get()

    def tell_again(self, host: str) -> None:
        """Should anybody wait for it, the host is told of once more: it has gone back to sleep meanwhile."""
        if self._waiting.get(host):
            self._hosts.put_nowait(host)

    def tell(self, host: str, route: str) -> None:
        """Those who wait for the host go on, by this route, or to the page of this name."""
        for writer in self._waiting.pop(host, ()):
            writer.write(f"{route}\n".encode())
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = ""
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
            host = (await reader.readuntil(b"\n")).decode("ascii").strip()
            self._waiting[host].add(writer)
            self._hosts.put_nowait(host)
            # Nothing more is said: this returns when the proxy hangs up.
            await reader.read()
        if host in self._waiting:
            self._waiting[host].discard(writer)
            if not self._waiting[host]:
                del self._waiting[host]
        writer.close()
