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
#: So many seconds who comes to a host is turned away as those before were, without anybody being told of it.
AWAY = 2.0
#: A host name has 253 bytes at most.
_LINE = 512


class Waiting:
    """The socket, and who waits on it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._waiting: defaultdict[str, set[asyncio.StreamWriter]] = defaultdict(set)
        self._hosts: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        #: Host → what those who come are told, and until when by the loop's clock.
        self._away: dict[str, tuple[str, float]] = {}

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
        """A host as soon as somebody waits for it; one that nobody waits for any more is left out."""
        while True:
            host = await self._hosts.get()
            self._queued.discard(host)
            if self._waiting.get(host):
                yield host

    def tell_again(self, host: str) -> None:
        """Should anybody wait for it, the host is told of once more: it has gone back to sleep meanwhile."""
        if self._waiting.get(host):
            self._knock(host)

    def turn_away(self, host: str, page: str) -> None:
        """Those who wait for the host, and who comes in the next moments, get the page of this name."""
        self.tell(host, page)
        self._away[host] = page, asyncio.get_running_loop().time() + AWAY

    def let_in(self, host: str) -> None:
        """Nobody is turned away from it any more."""
        self._away.pop(host, None)

    def tell(self, host: str, route: str) -> None:
        """Those who wait for the host go on, by this route, or to the page of this name."""
        for writer in self._waiting.pop(host, ()):
            writer.write(f"{route}\n".encode())
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = ""
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
            host = (await reader.readuntil(b"\n")).decode("ascii").strip()
            page, until = self._away.get(host, ("", 0.0))
            if asyncio.get_running_loop().time() < until:
                writer.write(f"{page}\n".encode())
            else:
                self._waiting[host].add(writer)
                self._knock(host)
                # Nothing more is said: this returns when the proxy hangs up.
                await reader.read()
        if host in self._waiting:
            self._waiting[host].discard(writer)
            if not self._waiting[host]:
                del self._waiting[host]
        writer.close()

    def _knock(self, host: str) -> None:
        if host not in self._queued:
            self._queued.add(host)
            self._hosts.put_nowait(host)
