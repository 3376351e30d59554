"""Upkeep: remove backups that no rule keeps, and free their space."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from builderd.domain.backups import Backup, BackupKey, BackupStatus, surplus
from builderd.domain.ids import BackupId, BuilderId, TenantId
from builderd.ports.backup_repository import TenantRepository
from builderd.reconciler.backups.context import BackupContext
from builderd.reconciler.backups.taking import drop
from builderd.store import UnitOfWork

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
    for tenant_id, names in (await context.app.backup_repository.manifests()).items():
        # The repository of one that is locked is worked on, with its lists: later.
        if not context.locks[tenant_id].locked():
            await _guarded(tenant_id, _drop_lists(context, tenant_id, names))


async def _expire(context: BackupContext, now: datetime) -> None:
    """Let backups that no rule keeps expire."""

    def find(uow: UnitOfWork, ids: Sequence[BuilderId]) -> Mapping[BuilderId, Sequence[Backup]]:
        found = {one: _unkept(context, taken, now) for one, taken in uow.backups.of_builders(ids).items()}
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


def _unkept(context: BackupContext, found: Sequence[Backup], now: datetime) -> Sequence[Backup]:
    """Return a builder's backups that no rule keeps and that have no time of expiry yet."""
    old = [b for b in found if b.status is BackupStatus.FAILED and b.created_at < now - KEEP_FAILED]
    return [*surplus(found, context.app.backup_rules.retention, now), *(b for b in old if b.expires_at is None)]


async def _guarded(tenant_id: TenantId, work: Awaitable[None]) -> None:
    try:
        await work
    except Exception:
        log.warning("backup retention failed, retrying later tenant=%s", tenant_id, exc_info=True)


async def _forget_expired(context: BackupContext, tenant_id: TenantId, expired: Sequence[Backup]) -> None:
    busy = await context.app.store.write(lambda uow: _being_restored(uow, expired))
    # One that is being taken is let go of once it is done, with its snapshot.
    going = [one for one in expired if one.id not in busy and not one.is_open]
    for one in going:
        if one.copy is not None:
            await drop(context, one.id, one.copy)
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


async def _drop_lists(context: BackupContext, tenant_id: TenantId, names: Collection[str]) -> None:
    """Remove manifests of builders without backups, and of restores that ended with an earlier process."""
    async with context.locks[tenant_id]:
        found = await context.app.store.read(lambda uow: uow.backups.among([BuilderId(name) for name in names]))
        for name in set(names) - set(found):
            await context.app.backup_repository.delete_manifest(tenant_id, name)


def _being_restored(uow: UnitOfWork, expired: Sequence[Backup]) -> set[BackupId]:
    """Return the backups with an open restore.

    Restores are requested under the lock of the builder, of backups that have not expired. So after this, none of the
    others is going to be restored, and its snapshot can go.
    """
    busy = set()
    for builder_id in sorted({one.builder_id for one in expired}):
        uow.builders.get(builder_id, lock=True)
        busy |= {restore.backup_id for restore in uow.restores.open_of(builder_id)}
    return busy


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
