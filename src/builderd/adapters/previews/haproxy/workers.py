"""Changes of routes for all workers of the running proxy: the current one, and those that a reload has replaced.

A replaced worker finishes its open requests and serves one more request on each idle connection. It has a map of its
own, so each change goes to it too until it exits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path

from builderd.adapters.previews.haproxy import process, runtime_api
from builderd.adapters.previews.haproxy.counting import TABLES
from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.adapters.previews.haproxy.route_map import encode
from builderd.adapters.previews.haproxy.runtime_api import CommandRefused, ProxyGone, Worker
from builderd.domain.previews import Route

#: Seconds for which a change is retried on a replaced worker that no longer takes commands.
EXIT_TIMEOUT = 2.0

log = logging.getLogger(__name__)


class Workers:
    """All workers. Methods raise ``ProxyGone`` without a current worker, ``CommandRefused`` if it rejects a command."""

    def __init__(self, files: ProxyFiles) -> None:
        self._files = files
        self._current = Worker(files.admin_socket)
        self._old: tuple[Worker, ...] = ()

    async def refresh(self) -> bool:
        """Find the replaced workers; return True if there is a new one, so a reload has happened."""
        known = self._old
        found = await process.find(self._files)
        self._old = tuple(Worker(self._files.master_socket, pid) for pid in (found.old_workers if found else ()))
        return not set(self._old) <= set(known)

    async def ask(self, command: str) -> list[str]:
        """Return each worker's answer, the current worker's first."""
        answers = [await self._current.ask(command)]

        async def ask(worker: Worker) -> None:
            answers.append(await worker.ask(command))

        await self._apply_to_old(ask)
        return answers

    async def put(self, route: Route, *, new: bool) -> None:
        change = runtime_api.add_entry if new else runtime_api.set_entry
        await self._apply(lambda worker: change(worker, self._files.routes, route.host, encode(route)))

    async def remove(self, host: str) -> None:
        await self._apply(lambda worker: runtime_api.delete_entry(worker, self._files.routes, host))

    async def forget_counters(self, hosts: Collection[str]) -> None:
        """Remove the hosts' counters from the current worker; a replaced one takes its own with it when it exits."""
        commands = [f"clear table {table} key {host}" for host in hosts for table in TABLES]
        for line in runtime_api.command_lines(commands):
            await self._current.ask(line)

    async def put_domain(self, host: str, value: str) -> None:
        await self._apply(lambda worker: runtime_api.set_entry(worker, self._files.domains, host, value))

    async def remove_domain(self, host: str) -> None:
        await self._apply(lambda worker: runtime_api.delete_entry(worker, self._files.domains, host))

    async def sync_domains(self, values: Mapping[str, str]) -> None:
        """Make each worker's map of domains equal to these values."""
        await self._apply(lambda worker: self._sync_map(worker, self._files.domains, values))

    async def put_link(self, token_hash: str, entry: str) -> None:
        await self._apply(lambda worker: runtime_api.set_entry(worker, self._files.links, token_hash, entry))

    async def remove_link(self, token_hash: str) -> None:
        await self._apply(lambda worker: runtime_api.delete_entry(worker, self._files.links, token_hash))

    async def sync_links(self, values: Mapping[str, str]) -> None:
        """Make each worker's map of links equal to these values."""
        await self._apply(lambda worker: self._sync_map(worker, self._files.links, values))

    async def sync(self, routes: Mapping[str, Route]) -> None:
        """Make each worker's map equal to these routes."""
        values = {host: encode(route) for host, route in routes.items()}
        await self._apply(lambda worker: self._sync_map(worker, self._files.routes, values))

    async def _sync_map(self, worker: Worker, table: Path, values: Mapping[str, str]) -> None:
        have = await runtime_api.entries(worker, table)
        await runtime_api.change_entries(worker, table, have, values)

    async def _apply(self, change: Callable[[Worker], Awaitable[None]]) -> None:
        await change(self._current)
        await self._apply_to_old(change)

    async def _apply_to_old(self, change: Callable[[Worker], Awaitable[None]]) -> None:
        """Apply a change to the replaced workers; skip those that exit, which take no commands any more."""
        for worker in self._old:
            deadline = asyncio.get_running_loop().time() + EXIT_TIMEOUT
            while worker in self._old:
                try:
                    await change(worker)
                    break
                except (ProxyGone, CommandRefused) as error:
                    if asyncio.get_running_loop().time() > deadline:
                        log.warning("replaced proxy worker takes no changes worker=%s error=%s", worker.pid, error)
                        break
                await asyncio.sleep(0.01)
                await self.refresh()
