"""Freezing and thawing of sandboxes: apps that sleep, and apps whose disk is copied meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from builderd.adapters.engines.oci.runtime.reclaiming import Reclaiming
from builderd.adapters.engines.oci.runtime.records import Record
from builderd.adapters.engines.oci.runtime.run import RunContext
from builderd.domain.errors import EngineUnavailable
from builderd.linux.threads import run_to_completion

if TYPE_CHECKING:
    from builderd.adapters.engines.oci.runtime.runs import Runs


class Freezing:
    """One lock a sandbox, held while it is frozen or thawed, and while work needs it frozen."""

    def __init__(self, context: RunContext, known: Runs) -> None:
        self._cgroups = context.cgroups
        self._records = context.records
        self._pause_requests = context.pause_requests
        self._known = known
        self._reclaiming = Reclaiming(context.cgroups)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def is_idle(self) -> bool:
        """Return True if no sandbox is being frozen or thawed."""
        return not self._locks

    def lock(self, record: Record) -> asyncio.Lock:
        return self._locks.setdefault(record.id, asyncio.Lock())

    def is_frozen(self, record: Record) -> bool:
        return record.counts_as_frozen and self._cgroups.is_frozen(record.id)

    async def while_frozen(self, record: Record, work: Callable[[], None]) -> None:
        """Run the work in a thread while the sandbox is frozen, and requests to it wait: a matter of milliseconds.

        ``freeze`` and ``thaw`` wait for it. Not recorded: a starting service thaws every sandbox that ``freeze`` did
        not freeze. Raises ``EngineUnavailable`` when one of its processes cannot be frozen; then it continues.
        """
        async with self.lock(record):
            record = self._known.newest(record)
            async with self._pause_requests(record.ip):
                await run_to_completion(self._work, record, work)

    def _work(self, record: Record, work: Callable[[], None]) -> None:
        if self.is_frozen(record) or not self._known.is_running(record):
            work()
            return
        try:
            self._freeze(record)
            work()
        finally:
            self._cgroups.thaw(record.id)

    def _freeze(self, record: Record) -> None:
        try:
            self._cgroups.freeze(record.id)
        except (TimeoutError, FileNotFoundError) as error:
            raise EngineUnavailable(f"The sandbox could not be frozen: {error}.") from error

    async def freeze(self, record: Record) -> None:
        """Freeze the sandbox; its memory is moved out in the background. Idempotent.

        Raises ``EngineUnavailable`` when one of its processes cannot be frozen; then it continues.
        """
        async with self.lock(record):
            record = self._known.newest(record)
            if self.is_frozen(record) or not self._known.is_running(record):
                return
            record = self._known.save(replace(record, frozen_at=self._records.now()))
            try:
                await run_to_completion(self._freeze, record)
            except EngineUnavailable:
                if self._known.is_running(record):
                    self.resume(record)
                raise
            self._reclaiming.begin(record.id)

    async def thaw(self, record: Record) -> Record:
        """Thaw the sandbox. Idempotent."""
        async with self.lock(record):
            record = self._known.newest(record)
            if not self.is_frozen(record):
                return record
            self.end_reclaim(record.id)
            return self.resume(record)

    def resume(self, record: Record) -> Record:
        """Thaw it, also when only its record says that it is frozen."""
        if record.counts_as_frozen:
            record = self._known.save(replace(record, thawed_at=self._records.now()))
        self._cgroups.thaw(record.id)
        return record

    def end_reclaim(self, name: str) -> None:
        """Stop moving a frozen sandbox's memory out."""
        self._reclaiming.end(name)

    def close(self) -> None:
        self._reclaiming.close()
