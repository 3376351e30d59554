"""Changes of maps for all workers of the running proxy: the current one, and those that a reload has replaced.

A replaced worker finishes its open requests and serves one more request on each idle connection. It has a map of its
own, so each change goes to it too until it exits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path

from builderd.adapters.previews.haproxy import process, runtime_api
from builderd.adapters.previews.haproxy.counters import TABLES
from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.adapters.previews.haproxy.runtime_api import CommandRefused, ProxyGone, Worker

#: Seconds for which a change is retried on a replaced worker that no longer takes commands.
EXIT_TIMEOUT = 2.0

log = logging.getLogger(__name__)


class Workers:
    """All workers. Methods raise ``ProxyGone`` without a current worker, ``CommandRefused`` if it rejects a command."""

    def __init__(self, files: ProxyFiles) -> None:
        self._files = files
        self._current = Worker(files.admin_socket)
        self._old: tuple[Worker, ...] = ()

    async def refresh(self) -> None:
        """Find the replaced workers that still run."""
        found = await process.find(self._files)
        self._old = tuple(Worker(self._files.master_socket, pid) for pid in (found.old_workers if found else ()))

    async def ask(self, command: str) -> list[str]:
        """Return each worker's answer, the current worker's first."""
        answers = [await self._current.ask(command)]

        async def ask(worker: Worker) -> None:
            answers.append(await worker.ask(command))

        await self._apply_to_old(ask)
        return answers

    async def set(self, table: Path, key: str, value: str) -> None:
        """Set an entry of each worker's map."""
        await self._apply(lambda worker: runtime_api.set_entry(worker, table, key, value))

    async def delete(self, table: Path, key: str) -> None:
        await self._apply(lambda worker: runtime_api.delete_entry(worker, table, key))

    async def entries(self, table: Path) -> dict[str, str]:
        """Return the entries of the current worker's map."""
        return await runtime_api.entries(self._current, table)

    async def sync(self, table: Path, values: Mapping[str, str]) -> None:
        """Make each worker's map equal to these values."""

        async def change(worker: Worker) -> None:
            await runtime_api.change_entries(worker, table, await runtime_api.entries(worker, table), values)

        await self._apply(change)

    async def forget_counters(self, hosts: Collection[str]) -> None:
        """Remove the hosts' counters from the current worker; a replaced one takes its own with it when it exits."""
        commands = [f"clear table {table} key {host}" for host in hosts for table in TABLES]
        for line in runtime_api.command_lines(commands):
            await self._current.ask(line)

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
