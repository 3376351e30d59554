"""Requests that wait for an app that is asleep or being replaced; ``pause.lua`` keeps them waiting in the proxy."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

from builderd.previews.model import RouteState

#: Seconds that a request is paused at most: of a browser that asks for a page, which then gets one that reloads itself,
#: and of every other. With more for a page, an app that starts would look like one that hangs.
MAX_PAGE_PAUSE, MAX_PAUSE = 2, 30
#: Part of all connections (1 in so many) that paused requests may have. A tenant may have as many as it leaves free.
PART = 2


def script() -> str:
    return Path(__file__).with_name("pause.lua").read_text()


#: States of a route that pause requests.
PAUSING_STATES = frozenset({RouteState.PAUSED, RouteState.ASLEEP})
#: Seconds for which a rejected host's later requests get the same page, without a new wake.
REJECT_SECONDS = 2.0
#: A host name has 253 bytes at most.
_LINE = 512


class PausedRequests:
    """The listening socket, and the proxy's open connections by host."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._connections: defaultdict[str, set[asyncio.StreamWriter]] = defaultdict(set)
        self._hosts: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        #: Host → page for its requests, and the time by the loop's clock at which that ends.
        self._rejected: dict[str, tuple[str, float]] = {}

    async def open(self, user: str | None) -> None:
        """Listen; ``user`` of the machine may connect beside the service's own. Idempotent."""
        if self._server is not None and self._path.exists():
            return
        await self.close()
        # Created beside the worker's jail, in a folder that no other user may enter.
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
        for writers in self._connections.values():
            for writer in writers:
                writer.close()
        self._connections.clear()

    async def hosts(self) -> AsyncIterator[str]:
        """Yield each host with paused requests; skip a host whose requests have ended meanwhile."""
        while True:
            host = await self._hosts.get()
            self._queued.discard(host)
            if self._connections.get(host):
                yield host

    def report_again(self, host: str) -> None:
        """Yield the host once more if it has paused requests: its app has gone back to sleep meanwhile."""
        if self._connections.get(host):
            self._enqueue(host)

    def reject(self, host: str, page: str) -> None:
        """Answer the host's paused requests, and those of the next ``REJECT_SECONDS``, with the page of this name."""
        self.release(host, page)
        self._rejected[host] = page, asyncio.get_running_loop().time() + REJECT_SECONDS

    def stop_rejecting(self, host: str) -> None:
        self._rejected.pop(host, None)

    def release(self, host: str, route: str) -> None:
        """Release the host's paused requests, with an encoded route or the name of a page."""
        for writer in self._connections.pop(host, ()):
            writer.write(f"{route}\n".encode())
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = ""
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
            host = (await reader.readuntil(b"\n")).decode("ascii").strip()
            page, until = self._rejected.get(host, ("", 0.0))
            if asyncio.get_running_loop().time() < until:
                writer.write(f"{page}\n".encode())
            else:
                self._connections[host].add(writer)
                self._enqueue(host)
                # The proxy writes nothing more: this returns when it closes the connection.
                await reader.read()
        if host in self._connections:
            self._connections[host].discard(writer)
            if not self._connections[host]:
                del self._connections[host]
        writer.close()

    def _enqueue(self, host: str) -> None:
        if host not in self._queued:
            self._queued.add(host)
            self._hosts.put_nowait(host)
