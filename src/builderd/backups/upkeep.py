"""Upkeep of backups: remove those that no rule keeps, check, repair and adopt repositories. The jobs' context."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from builderd.application import Application
from builderd.backups import service as backups
from builderd.backups.model import Backup, BackupKey, BackupKind, BackupStatus, Restore, surplus
from builderd.backups.port import OnProgress, RepositoryDamaged, SnapshotRecord, TenantRepository
from builderd.builders.model import Builder
from builderd.core.errors import BackupFailed, BuilderdError, StoreUnavailable, is_by_machine, machine_fault
from builderd.core.ids import BackupId, BuilderId, TenantId
from builderd.core.loops import FaultPoint, end_tasks, no_fault
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM, Event

#: Time that a failed backup stays listed.
KEEP_FAILED = timedelta(days=7)
#: Builders whose backups are looked at in one transaction.
BATCH = 1_000

log = logging.getLogger(__name__)


async def clean_up(context: BackupContext) -> None:
    """Remove expired backups, repository by repository; skip unreachable ones until the next call."""
    now = context.app.clock.deletable()
    await _expire(context, now)
    over: defaultdict[TenantId, list[Backup]] = defaultdict(list)
    for backup in await context.app.store.read(lambda uow: uow.backups.expired(now)):
        over[backup.tenant_id].append(backup)
    for tenant_id, expired in over.items():
        await _guarded(tenant_id, _forget_expired(context, tenant_id, expired))
    for key in await context.app.store.read(lambda uow: uow.backup_keys.all()):
        is_prune_due = key.forgotten_at is not None and key.forgotten_at >= key.pruned_at
        if is_prune_due and now - key.pruned_at >= context.app.backup_rules.prune_every:
            await _guarded(key.tenant_id, _prune(context, key))


async def _expire(context: BackupContext, now: datetime) -> None:
    """Let backups that no rule keeps expire."""
    retention = context.app.backup_rules.retention

    def find(uow: UnitOfWork, ids: Sequence[BuilderId]) -> Mapping[BuilderId, Sequence[Backup]]:
        found = {}
        for one, taken in uow.backups.of_builders(ids).items():
            old = [b for b in taken if b.status is BackupStatus.FAILED and b.created_at < now - KEEP_FAILED]
            found[one] = [*surplus(taken, retention, now), *(b for b in old if b.expires_at is None)]
        return {one: unkept for one, unkept in found.items() if unkept}

    def expire(uow: UnitOfWork, ids: Sequence[BuilderId]) -> None:
        for backup in itertools.chain.from_iterable(find(uow, ids).values()):
            uow.backups.save(replace(backup, expires_at=now))

    last = ""
    while ids := await context.app.store.read(partial(lambda after, uow: uow.backups.builders(after, BATCH), last)):
        last = ids[-1]
        if over := await context.app.store.read(partial(find, ids=ids)):
            # Read again: a backup that was the newest by one may be the newest by now.
            await context.app.store.write(partial(expire, ids=sorted(over)))


async def _guarded(tenant_id: TenantId, work: Awaitable[None]) -> None:
    try:
        await work
    except Exception:
        log.warning("backup retention failed, retrying later tenant=%s", tenant_id, exc_info=True)


async def _forget_expired(context: BackupContext, tenant_id: TenantId, expired: Sequence[Backup]) -> None:
    def being_restored(uow: UnitOfWork) -> set[BackupId]:
        busy = set()
        for builder_id in sorted({one.builder_id for one in expired}):
            # Restores are requested under this lock, of backups that have not expired: so none of the others is going
            # to be restored, and its snapshot can go.
            uow.builders.get(builder_id, lock=True)
            busy |= {restore.backup_id for restore in uow.restores.open_of(builder_id)}
        return busy

    busy = await context.app.store.write(being_restored)
    # One that is being taken is let go of once it is done, with its snapshot.
    going = [one for one in expired if one.id not in busy and not one.is_open]
    for one in going:
        if one.copy is not None:
            await context.drop_copy(one)
    snapshots = [one.snapshot for one in going if one.snapshot is not None]
    if snapshots:
        async with context.repository(tenant_id) as repository:
            context.fault_point("ForgetBackups.begun")
            await context.app.backup_repository.forget(repository, snapshots)
            context.fault_point("ForgetBackups.done")

    def record(uow: UnitOfWork) -> None:
        for one in going:
            uow.backups.delete(one.id)
        key = uow.backup_keys.get(tenant_id, lock=True)
        if key is not None and snapshots:
            uow.backup_keys.save(replace(key, forgotten_at=context.app.clock.now()))

    await context.app.store.write(record)
    context.fault_point("ForgetBackups.recorded")


async def _prune(context: BackupContext, key: BackupKey) -> None:
    now = context.app.clock.now()

    def record(uow: UnitOfWork) -> None:
        found = uow.backup_keys.get(key.tenant_id, lock=True)
        if found is not None:
            uow.backup_keys.save(replace(found, pruned_at=now))

    try:
        async with context.repository(key.tenant_id) as repository:
            await _forget_strays(context, repository)
            await context.app.backup_repository.prune(repository)
    finally:
        # Tried again a day later: restic refuses as long as a backup lacks data.
        await context.app.store.write(record)


async def _forget_strays(context: BackupContext, repository: TenantRepository) -> None:
    """Remove unrecorded snapshots: the service died after making them and before recording them.

    Those of builders that are not recorded either stay: they were made after the state that this service was restored
    from.
    """
    tenant_id = repository.tenant_id

    def load(uow: UnitOfWork) -> tuple[set[str | None], set[BuilderId]]:
        known = {one.snapshot for one in uow.backups.of_tenant(tenant_id)}
        return known, {one.id for one in uow.builders.of_tenant(tenant_id, deleted=True)}

    known, builders = await context.app.store.read(load)
    saved = await context.app.backup_repository.snapshots(repository)
    strays = [snapshot for snapshot, kept in saved.items() if snapshot not in known and kept.builder in builders]
    if strays:
        await context.app.backup_repository.forget(repository, strays)


#: Delay before a check that a machine fault interrupted is repeated.
CHECK_RETRY = timedelta(hours=6)
#: ``fault`` of a backup that a check found incomplete.
LOST = (
    "Data of this backup is lost, and it cannot be restored. The builder's next backup stores again what it still has."
)


async def check(context: BackupContext) -> None:
    """Check the repositories that are due. A fault becomes an event of the tenant and is stored with its key."""
    now, every = context.app.clock.now(), context.app.backup_rules.check_every

    def due(uow: UnitOfWork) -> list[TenantId]:
        keys = (key.tenant_id for key in uow.backup_keys.all() if now - key.checked_at >= every)
        # A tenant without backups has no repository either.
        return [one for one in keys if uow.backups.has_done(one, now)]

    for tenant_id in await context.app.store.read(due):
        await check_one(context, tenant_id)


def mark(uow: UnitOfWork, context: BackupContext, tenant_id: TenantId, error: Exception) -> bool:
    """Mark the repository as damaged if the error tells of damage; return whether it does.

    Until a check has ended well, no backup is saved: it could rely on data that cannot be read. The caller calls
    ``check_one``; if the service dies before that, the mark makes a check due.
    """
    if not isinstance(error, RepositoryDamaged):
        return False
    key = uow.backup_keys.get(tenant_id, lock=True)
    assert key is not None, "a repository was opened with its key"
    now = context.app.clock.now()
    if not key.fault:
        uow.events.add(Event(tenant_id, None, now, "backups.damaged", SYSTEM, error.message, {}))
    uow.backup_keys.save(replace(key, fault=error.message, checked_at=now - context.app.backup_rules.check_every))
    log.error("backup repository damaged, repairing tenant=%s error=%s", tenant_id, error.message)
    return True


async def refuse_damaged(context: BackupContext, tenant_id: TenantId) -> None:
    """Check a marked repository before a backup. Raises ``BackupFailed`` if it is still damaged."""
    key = await context.app.store.read(lambda uow: uow.backup_keys.get(tenant_id))
    if key is not None and key.fault and (fault := await check_one(context, tenant_id)):
        raise BackupFailed(fault)


async def check_one(context: BackupContext, tenant_id: TenantId) -> str:
    """Check a repository, and repair it if it is damaged; return what is wrong with it then, "" when nothing is.

    After a machine fault the last known finding is returned. Raises ``StoreUnavailable``.
    """
    try:
        async with context.repository(tenant_id) as repository:
            incomplete = await _examine(context, repository)
    except StoreUnavailable:
        raise
    except Exception as error:
        return await _record_fault(context, tenant_id, error)
    await _record_whole(context, tenant_id, incomplete)
    return ""


async def _examine(context: BackupContext, repository: TenantRepository) -> Collection[str]:
    """Return the snapshots whose data is lost. A marked repository is read whole and repaired."""
    app, tenant_id = context.app, repository.tenant_id
    key = await app.store.read(lambda uow: uow.backup_keys.get(tenant_id))
    if key is None or not key.fault:
        try:
            return await app.backup_repository.check(repository, app.backup_rules.check_percent)
        except RepositoryDamaged as error:
            damage = error
        await app.store.write(lambda uow: mark(uow, context, tenant_id, damage))
    await app.backup_repository.repair(repository)
    return await app.backup_repository.check(repository, 0)


async def _record_fault(context: BackupContext, tenant_id: TenantId, error: Exception) -> str:
    fault, now = reason_of(error), context.app.clock.now()
    # A fault of the machine is no finding: keep the last known state of the repository.
    by_machine = is_by_machine(error)
    log.warning("repository check failed tenant=%s retried=%s error=%s", tenant_id, by_machine, fault)

    def record(uow: UnitOfWork) -> str:
        key = uow.backup_keys.get(tenant_id, lock=True)
        if key is None:
            return fault
        if by_machine:
            at = now - context.app.backup_rules.check_every + CHECK_RETRY
            uow.backup_keys.save(replace(key, checked_at=at))
            return key.fault
        if not key.fault:
            uow.events.add(Event(tenant_id, None, now, "backups.damaged", SYSTEM, fault, {}))
        uow.backup_keys.save(replace(key, checked_at=now, fault=fault))
        return fault

    return await context.app.store.write(record)


async def _record_whole(context: BackupContext, tenant_id: TenantId, incomplete: Collection[str]) -> None:
    now = context.app.clock.now()

    def record(uow: UnitOfWork) -> None:
        for backup in uow.backups.of_tenant(tenant_id):
            is_lost = backup.snapshot in incomplete
            if backup.status is BackupStatus.DONE and is_lost != (backup.fault == LOST):
                uow.backups.save(replace(backup, fault=LOST if is_lost else ""))
        key = uow.backup_keys.get(tenant_id, lock=True)
        if key is None:
            return
        uow.backup_keys.save(replace(key, checked_at=now, fault=""))
        if key.fault:
            reason = f"the repository is whole again; backups whose data is lost: {len(incomplete)}"
            uow.events.add(Event(tenant_id, None, now, "backups.whole", SYSTEM, reason, {}))
            log.warning("backup repository repaired tenant=%s incomplete_backups=%d", tenant_id, len(incomplete))

    await context.app.store.write(record)


async def adopt(context: BackupContext) -> None:
    """Bring every tenant's backup records in line with the snapshots in its repository.

    Raises the repositories' errors, so that nothing is restored from a backup older than the newest one.
    """
    for key in await context.app.store.read(lambda uow: uow.backup_keys.all()):
        await _adopt(context, key)


async def _adopt(context: BackupContext, key: BackupKey) -> None:
    async with context.repository(key.tenant_id) as repository:
        kept = await context.app.backup_repository.snapshots(repository)
    now = context.app.clock.now()

    def record(uow: UnitOfWork) -> None:
        taken, gone = _adopt_unknown(uow, context, key.tenant_id, kept), _drop_missing(uow, key.tenant_id, kept)
        if taken or gone:
            reason = f"{taken} backups that were taken since are known again, {gone} that went since no longer"
            uow.events.add(Event(key.tenant_id, None, now, "backups.adopted", SYSTEM, reason, {}))
            log.info("backups adopted tenant=%s added=%d removed=%d", key.tenant_id, taken, gone)

    await context.app.store.write(record)


def _adopt_unknown(
    uow: UnitOfWork, context: BackupContext, tenant: TenantId, kept: Mapping[str, SnapshotRecord]
) -> int:
    known = uow.backups.of_tenant(tenant)
    snapshots, ids = {one.snapshot for one in known}, {one.id for one in known}
    builders: dict[BuilderId, Builder] = {one.id: one for one in uow.builders.of_tenant(tenant, deleted=True)}
    new = [
        one
        for snapshot, one in kept.items()
        if snapshot not in snapshots and one.backup not in ids and one.builder in builders
    ]
    for one in {one.backup: one for one in new}.values():
        uow.backups.add(_backup(uow, context, builders[one.builder], one))
    return len(new)


def _backup(uow: UnitOfWork, context: BackupContext, builder: Builder, kept: SnapshotRecord) -> Backup:
    """Use the current version where the backup's own was deployed after the restored state and is therefore unknown."""
    version = kept.version if uow.versions.get(builder.id, kept.version) else builder.version
    return Backup(
        id=kept.backup,
        tenant_id=builder.tenant_id,
        builder_id=builder.id,
        builder_name=builder.name,
        version=version,
        kind=BackupKind.SCHEDULED,
        status=BackupStatus.DONE,
        actor=SYSTEM,
        owner=context.app.instance,
        created_at=kept.at,
        finished_at=kept.at,
        snapshot=kept.summary.snapshot,
        files=kept.summary.files,
        size_bytes=kept.summary.size_bytes,
        added_bytes=kept.summary.added_bytes,
    )


def _drop_missing(uow: UnitOfWork, tenant: TenantId, kept: Mapping[str, SnapshotRecord]) -> int:
    gone = [
        one
        for one in uow.backups.of_tenant(tenant)
        if one.status is BackupStatus.DONE and one.snapshot not in kept and not uow.restores.open_of(one.builder_id)
    ]
    for one in gone:
        uow.backups.delete(one.id)
    return len(gone)


#: Interval between two saves of the progress, in seconds.
PROGRESS_INTERVAL = 5.0
#: So many repositories are worked on at the same time, and so many drills run.
MAX_CONCURRENT = 2


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
            await end_tasks(notifier)

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
