"""Pool of sandboxes that were created in advance and wait for a claim.

Each is a whole sandbox of the base without a layer, with an address and a root of its own, in which nothing has run.
The pool is filled in the background while a CPU is idle. What is reserved and not claimed in time is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from builderd.adapters.engines.oci.runtime.records import Record
from builderd.domain.errors import BuilderdError
from builderd.domain.ids import SandboxId
from builderd.linux.cpu_time import IdleCpus

log = logging.getLogger(__name__)

#: After a claim, the app has the CPU first, for so many seconds; the emptier the pool, the sooner it is filled.
PAUSE, LEAST_PAUSE = 0.25, 0.03
#: So many CPUs must have been idle since the last look; otherwise the pool waits, then looks again.
IDLE_CPUS, BUSY_SECONDS = 0.5, 0.5
#: After a failure, such as a full store.
RETRY_SECONDS = 30.0
EXPECTED = (BuilderdError, OSError)
#: A reservation that no start has claimed by then is dropped.
RESERVED_SECONDS = 60.0


class _Held(NamedTuple):
    """A sandbox that is left alone until this monotonic time."""

    record: Record
    until: float


class Pool:
    """``make`` creates a sandbox, ``drop`` removes one; ``size`` of them are ready when the machine is idle."""

    def __init__(
        self,
        size: int,
        make: Callable[[], Awaitable[Record]],
        drop: Callable[[Record], Awaitable[None]],
        idle: IdleCpus | None = None,
    ) -> None:
        self._size = size
        self._make = make
        self._drop = drop
        self._idle = idle or IdleCpus()
        self._ready: list[Record] = []
        self._reserved: dict[str, _Held] = {}
        #: Removals that continue, and sandboxes that could not be removed, by id.
        self._removals: dict[str, asyncio.Task[None]] = {}
        self._left: dict[str, _Held] = {}
        self._wanted = asyncio.Event()
        self._filling: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to fill the pool. Needs a running event loop."""
        if self._size:
            self._wanted.set()
            self._filling = asyncio.get_running_loop().create_task(self._fill())

    async def close(self) -> None:
        """Stop filling, and remove all that was not claimed. Idempotent."""
        if self._filling:
            self._filling.cancel()
            await asyncio.wait({self._filling})
            self._filling = None
        left = [*self._ready, *(one.record for one in (*self._reserved.values(), *self._left.values()))]
        self._ready.clear()
        self._reserved.clear()
        self._left.clear()
        await asyncio.gather(*self._removals.values(), *(self.remove(record) for record in left))

    def reserve(self) -> SandboxId | None:
        """Return the id of a sandbox for a start that follows at once, None when none is ready."""
        if not self._ready:
            return None
        record = self._ready.pop(0)
        self._reserved[record.id] = _Held(record, time.monotonic() + RESERVED_SECONDS)
        self._wanted.set()
        return SandboxId(record.id)

    def take(self, sandbox: SandboxId) -> Record | None:
        """Return a reserved sandbox to its claimer, once; None for any other id."""
        found = self._reserved.pop(sandbox, None)
        return found.record if found else None

    async def discard(self, sandbox: SandboxId) -> None:
        """Remove a reserved sandbox whose start is not wanted any more. Idempotent."""
        if record := self.take(sandbox):
            await self.remove(record)

    async def forget(self, sandbox: SandboxId) -> None:
        """Leave what bears this id to the caller: wait for its removal, and do not try that again.

        A start that comes after its reservation expired makes a sandbox of the same id.
        """
        if removal := self._removals.get(sandbox):
            await asyncio.shield(removal)
        self._left.pop(sandbox, None)

    async def remove(self, record: Record) -> None:
        """Remove a sandbox that was prepared; one that cannot be removed now is tried again later."""
        removal = self._removals.get(record.id)
        if removal is None:
            removal = self._removals[record.id] = asyncio.get_running_loop().create_task(self._remove(record))
            removal.add_done_callback(lambda _: self._removals.pop(record.id, None))
        await asyncio.shield(removal)

    async def _fill(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), RESERVED_SECONDS)
            self._wanted.clear()
            await self._drop_unused()
            while len(self._ready) < self._size:
                self._idle.since_last()
                await asyncio.sleep(max(LEAST_PAUSE, PAUSE * len(self._ready) / self._size))
                if self._idle.since_last() < IDLE_CPUS:
                    await asyncio.sleep(BUSY_SECONDS)
                else:
                    await self._add()
                # Here too: a busy machine, or one whose store is full, may not leave this loop for hours.
                await self._drop_unused()

    async def _add(self) -> None:
        try:
            self._ready.append(await self._make())
        except Exception as error:
            log.warning("sandbox not prepared, retrying: error=%s", error, exc_info=not isinstance(error, EXPECTED))
            await asyncio.sleep(RETRY_SECONDS)

    async def _drop_unused(self) -> None:
        """Remove what no start has claimed in time, and what could not be removed before."""
        now = time.monotonic()
        for name in [name for name, one in self._reserved.items() if one.until < now]:
            log.warning("reserved sandbox was not started, removing it sandbox=%s", name)
            await self.discard(SandboxId(name))
        for name in [name for name, one in self._left.items() if one.until < now]:
            if left := self._left.pop(name, None):
                await self.remove(left.record)

    async def _remove(self, record: Record) -> None:
        self._left.pop(record.id, None)
        try:
            await self._drop(record)
        except Exception as error:
            log.warning("prepared sandbox not removed, retrying sandbox=%s error=%s", record.id, error)
            self._left[record.id] = _Held(record, time.monotonic() + RETRY_SECONDS)
