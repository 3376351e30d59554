"""The routes that the workers of the running proxy go by: of the one that takes visitors, and of those before it.

A worker that a reload has replaced finishes what is open, and serves one more request on each connection that was idle.
It does so by a map of its own, so whatever changes is told to it as well for as long as it is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from builderd.adapters.previews.haproxy import process, runtime_api
from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.adapters.previews.haproxy.route_map import encode
from builderd.adapters.previews.haproxy.runtime_api import CommandRefused, ProxyGone, Worker
from builderd.domain.previews import Route

#: So many seconds a worker that has begun to end may take to be gone.
LEAVING = 2.0

log = logging.getLogger(__name__)


class Workers:
    """Methods raise ``ProxyGone`` where no worker takes visitors, and ``CommandRefused`` where one will not."""

    def __init__(self, files: ProxyFiles) -> None:
        self._files = files
        self._first = Worker(files.admin_socket)
        self._old: tuple[Worker, ...] = ()

    async def look(self) -> bool:
        """Find the workers of before; whether there is one that was not known, so that a reload has been."""
        known = self._old
        found = await process.find(self._files)
        self._old = tuple(Worker(self._files.master_socket, pid) for pid in (found.old_workers if found else ()))
        return not set(self._old) <= set(known)

    async def ask(self, command: str) -> list[str]:
        """What each says that is still there, the first before the old ones."""
        answers = [await self._first.ask(command)]

        async def ask(worker: Worker) -> None:
            answers.append(await worker.ask(command))

        await self._tell_old(ask)
        return answers

    async def put(self, route: Route, *, new: bool) -> None:
        change = runtime_api.add_entry if new else runtime_api.set_entry
        await self._tell(lambda worker: change(worker, self._files.routes, route.host, encode(route)))

    async def remove(self, host: str) -> None:
        await self._tell(lambda worker: runtime_api.delete_entry(worker, self._files.routes, host))

    async def agree(self, routes: Mapping[str, Route]) -> None:
        """Bring each to these routes."""
        await self._tell(lambda worker: self._agree(worker, routes))

    async def _agree(self, worker: Worker, routes: Mapping[str, Route]) -> None:
        table = self._files.routes
        have = await runtime_api.entries(worker, table)
        for host in have.keys() - routes.keys():
            await runtime_api.delete_entry(worker, table, host)
        for host, route in routes.items():
            if have.get(host) != encode(route):
                await runtime_api.set_entry(worker, table, host, encode(route))

    async def _tell(self, change: Callable[[Worker], Awaitable[None]]) -> None:
        await change(self._first)
        await self._tell_old(change)

    async def _tell_old(self, change: Callable[[Worker], Awaitable[None]]) -> None:
        """One that has ended meanwhile need not be told; one that is about to takes no commands any more."""
        for worker in self._old:
            deadline = asyncio.get_running_loop().time() + LEAVING
            while worker in self._old:
                try:
                    await change(worker)
                    break
                except (ProxyGone, CommandRefused) as error:
                    if asyncio.get_running_loop().time() > deadline:
                        log.warning(
                            "worker %s of the proxy, which is on its way out, is not told: %s", worker.pid, error
                        )
                        break
                await asyncio.sleep(0.01)
                await self.look()
