"""Shared context of backup jobs: ports, concurrency limits, progress and failure reports."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from builderd.domain.backups import Backup, Restore
from builderd.domain.errors import BuilderdError, machine_fault
from builderd.domain.ids import TenantId
from builderd.ports.backup_repository import OnProgress, TenantRepository
from builderd.reconciler.core.loops import FaultPoint, no_fault
from builderd.services import backups
from builderd.services.application import Application
from builderd.store import UnitOfWork

#: Interval between two saves of the progress, in seconds.
PROGRESS_INTERVAL = 5.0
#: So many repositories are worked on at the same time, and so many drills run.
MAX_CONCURRENT = 2

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BackupContext:
    app: Application
    fault_point: FaultPoint = no_fault
    repository_limit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT))
    #: The disk of a drill is there for longer than the repository is worked on: until its app was tried out.
    drill_limit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT))
    #: One drill at a time of each tenant, so that one tenant's do not keep the others' waiting.
    drill_locks: defaultdict[TenantId, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    #: One piece of work at a time on each repository.
    locks: defaultdict[TenantId, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    @asynccontextmanager
    async def repository(self, tenant_id: TenantId) -> AsyncIterator[TenantRepository]:
        """Open the tenant's repository, with exclusive use of it while the context lasts."""
        async with self.locks[tenant_id], self.repository_limit:
            yield await backups.repository(self.app, tenant_id)

    @asynccontextmanager
    async def drill(self, tenant_id: TenantId) -> AsyncIterator[None]:
        """Wait until a drill of the tenant may begin; count it as running until the context ends."""
        async with self.drill_locks[tenant_id], self.drill_limit:
            yield

    async def write(self, about: Backup | Restore, work: Callable[[UnitOfWork], T]) -> T:
        """Write in one transaction, then wake the calls that wait for the result."""
        result = await self.app.store.write(work)
        self.app.signals.change(about.builder_id)
        return result

    async def drop_copy(self, backup: Backup) -> None:
        """Remove the copied disk, then its recorded name: after a crash in between, the removal is repeated."""
        assert backup.copy is not None, "it was not dropped yet"
        await self.app.engine.disks.delete_disk(backup.copy)

        def record(uow: UnitOfWork) -> None:
            found = uow.backups.get(backup.id)
            if found is not None:
                uow.backups.save(replace(found, copy=None))

        await self.app.store.write(record)

    @asynccontextmanager
    async def progress(self, about: Backup | Restore, kind: str) -> AsyncIterator[OnProgress]:
        """Tell events of progress from time to time."""
        share = 0.0

        def on_progress(done: float) -> None:
            nonlocal share
            share = done

        async def notify_often() -> None:
            last = 0.0
            while True:
                await asyncio.sleep(PROGRESS_INTERVAL)
                if share > last:
                    last = share
                    await self.notify(about, f"{kind}.progress", f"{share:.0%} done", percent=round(share * 100))

        notifier = asyncio.create_task(notify_often())
        try:
            yield on_progress
        finally:
            notifier.cancel()
            await asyncio.gather(notifier, return_exceptions=True)

    async def notify(self, about: Backup | Restore, kind: str, reason: str, **details: Any) -> None:
        now = self.app.clock.now()
        await self.write(about, lambda uow: backups.notify(uow, about, kind, now, reason=reason, details=details))


def reason_of(error: BaseException) -> str:
    """Return the reason shown to callers that wait; log an unexpected exception."""
    if isinstance(error, BuilderdError):
        return error.message
    log.error("backup job failed", exc_info=error)
    fault = machine_fault(error)
    if fault is not None:
        return fault.message
    return "The service failed at it; its log says why."
