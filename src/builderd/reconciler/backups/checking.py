"""Checks and repair of the repositories, and adoption of their backups after the database was restored."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import timedelta

from builderd.domain.backups import Backup, BackupKey, BackupKind, BackupStatus
from builderd.domain.builders import Builder
from builderd.domain.errors import BackupFailed, StoreUnavailable, is_by_machine
from builderd.domain.events import SYSTEM, Event
from builderd.domain.ids import BuilderId, TenantId
from builderd.ports.backup_repository import RepositoryDamaged, SnapshotRecord, TenantRepository
from builderd.reconciler.backups.context import BackupContext, reason_of
from builderd.store import UnitOfWork

#: Delay before a check that a machine fault interrupted is repeated.
CHECK_RETRY = timedelta(hours=6)
#: ``fault`` of a backup that a check found incomplete.
LOST = (
    "Data of this backup is lost, and it cannot be restored. The builder's next backup stores again what it still has."
)

log = logging.getLogger(__name__)


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
        digest=kept.summary.digest,
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
