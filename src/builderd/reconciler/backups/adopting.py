"""Adopting: after the service's database was restored, read from the repositories which backups they really hold.

Backups that were taken since are recorded again; those that were let go of since are known no longer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from builderd.domain.backups import Backup, BackupKey, BackupKind, BackupStatus
from builderd.domain.builders import Builder
from builderd.domain.events import SYSTEM, Event
from builderd.domain.ids import BuilderId, TenantId
from builderd.ports.backup_repository import SnapshotRecord
from builderd.reconciler.backups.context import BackupContext
from builderd.store import UnitOfWork

log = logging.getLogger(__name__)


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
