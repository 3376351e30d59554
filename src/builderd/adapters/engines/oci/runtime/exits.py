"""Exit watcher: reports the end of each sandbox, from the shim's exit file or the death of the shim itself."""

from __future__ import annotations

import asyncio
import os
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from builderd.adapters.engines.oci.runtime.records import is_name
from builderd.domain.errors import EngineUnavailable
from builderd.linux.processes import Process
from builderd.linux.syscalls import check, libc

_IN_CLOSE_WRITE = 0x8
_IN_MOVED_TO = 0x80
#: struct inotify_event: watch, mask, cookie, length of the name that follows.
_EVENT = struct.Struct("iIII")
#: Time for a shim to write its sandbox's exit file before it counts as lost.
_SHIM_SECONDS = 30.0


class Exits:
    """Watcher of exit files. ``ended`` returns True for a sandbox that has ended.

    ``end_unmonitored`` is awaited where a shim has ended, or does not write down the end of its sandbox: it ends what
    the shim left, and returns False where the shim wrote an exit file after all.
    """

    def __init__(
        self, folder: Path, ended: Callable[[str], bool], end_unmonitored: Callable[[str], Awaitable[bool]]
    ) -> None:
        self._folder = folder
        self._ended = ended
        self._end_unmonitored = end_unmonitored
        self._inotify: int | None = None
        self._subscribers: set[asyncio.Queue[str]] = set()
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._watches: dict[str, asyncio.Task[None]] = {}

    def open(self) -> None:
        """Start watching; needs a running event loop. Idempotent. Raises ``EngineUnavailable``."""
        if self._inotify is not None:
            return
        mask = _IN_CLOSE_WRITE | _IN_MOVED_TO
        try:
            self._inotify = check(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify")
            check(libc.inotify_add_watch(self._inotify, bytes(self._folder), mask), "inotify")
        except OSError as error:
            raise EngineUnavailable(
                f"The ends of sandboxes cannot be seen: {error.strerror}. See fs.inotify.max_user_instances."
            ) from error
        asyncio.get_running_loop().add_reader(self._inotify, self._read_events)

    def close(self) -> None:
        for task in self._watches.values():
            task.cancel()
        self._watches.clear()
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = None

    def watch(self, name: str, process: Process, shim: Process | None) -> None:
        """Watch the shim and the first process too, in case no exit file is written. ``shim`` None: it is gone."""
        self._watches[name] = asyncio.get_running_loop().create_task(self._await_death(name, process, shim))

    async def wait(self, name: str, seconds: float) -> bool:
        """Wait for the end of a sandbox; return False when it has not ended by then."""
        event = asyncio.Event()
        self._waiting[name].add(event)
        try:
            if self._ended(name):
                return True
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            return self._ended(name)
        else:
            return True
        finally:
            self._waiting[name].discard(event)
            if not self._waiting[name]:
                del self._waiting[name]

    async def subscribe(self) -> AsyncIterator[str]:
        """Yield the ids of sandboxes that end from now on."""
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._subscribers.discard(queue)

    async def _await_death(self, name: str, process: Process, shim: Process | None) -> None:
        try:
            if shim is not None:
                await _first(process.wait(), shim.wait())
                await _first(self.wait(name, _SHIM_SECONDS), shim.wait())
            if await self._end_unmonitored(name):
                self._notify(name)
        finally:
            # The end of a sandbox that ended before it was watched is not reported.
            if self._watches.get(name) is asyncio.current_task():
                del self._watches[name]

    def _read_events(self) -> None:
        assert self._inotify is not None
        buffer = os.read(self._inotify, 65536)
        while buffer:
            _, _, _, length = _EVENT.unpack_from(buffer)
            name = buffer[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode(errors="replace")
            buffer = buffer[_EVENT.size + length :]
            if is_name(name) and self._ended(name):
                self._notify(name)

    def _notify(self, name: str) -> None:
        for event in self._waiting.get(name, ()):
            event.set()
        task = self._watches.pop(name, None)
        if task and task is not asyncio.current_task():
            task.cancel()
        for queue in self._subscribers:
            queue.put_nowait(name)


async def _first(*waits: Coroutine[Any, Any, bool]) -> None:
    """Return when the first of them returns; cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
