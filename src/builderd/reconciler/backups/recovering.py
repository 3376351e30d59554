"""Recovery: a builder whose disk is gone gets the newest backup of it, or fails and says why; never an empty disk."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from builderd.domain.backups import Backup, Restore, RestoreStatus
from builderd.domain.builders import Builder, Desired
from builderd.domain.errors import BackupFailed
from builderd.domain.prices import Prices
from builderd.reconciler.backups.context import BackupContext
from builderd.reconciler.core import transitions
from builderd.reconciler.core.transitions import Transition
from builderd.services import backups
from builderd.store import UnitOfWork


async def attach_restored_disk(context: BackupContext, restore: Restore, backup: Backup, known: Builder) -> None:
    """Put the restored disk in the place of the missing one; the reconciler continues from there."""
    app, now = context.app, context.app.clock.now()
    if await app.engine.disks.disk(known.disk) is not None:
        raise BackupFailed("The builder has a disk again.")

    def record(uow: UnitOfWork) -> Builder:
        builder = uow.builders.get(restore.builder_id, lock=True)
        if builder is None or builder.desired is Desired.DELETED or builder.disk != known.disk:
            raise BackupFailed("The builder was deleted, or has another disk by now.")
        reason = f"its disk was gone: the backup of {backups.when(backup)} is back"
        saved = replace(
            builder,
            disk=restore.disk,
            disk_is_made=True,
            # On a member that is away it still is, and is deleted when that returns.
            spare_disks=(*builder.spare_disks, known.disk),
            location="",
            cause=replace(builder.cause, reason=reason),
            status_reason=reason,
            updated_at=now,
        )
        uow.builders.save(saved)
        version = uow.versions.get(builder.id, builder.to_run[0])
        if version is not None and version.released and version.number != backup.version:
            # The release has prepared the disk that is gone; this one is an older version's.
            uow.versions.save(replace(version, released=False))
        uow.builders.make_due(builder.id, now)
        uow.restores.save(replace(restore, status=RestoreStatus.DONE, finished_at=now))
        details = {"backup": backup.id, "version": backup.version}
        backups.notify(uow, restore, "restore.finished", now, reason=reason, details=details)
        return saved

    await app.commit(record)


async def is_lost(context: BackupContext, restore: Restore) -> bool:
    """Return whether the engine still has no disk for the restore's builder."""
    builder = await context.app.store.read(lambda uow: uow.builders.get(restore.builder_id))
    return builder is not None and await context.app.engine.disks.disk(builder.disk) is None


def give_up(uow: UnitOfWork, restore: Restore, prices: Prices, reason: str, now: datetime) -> None:
    """Fail the builder with the reason, unless it was stopped or deleted meanwhile."""
    builder = uow.builders.get(restore.builder_id, lock=True)
    if builder is None or builder.desired is not Desired.RUNNING:
        return
    version = uow.versions.get(builder.id, builder.to_run[0])
    assert version is not None, "a builder's versions are always stored"
    words = (
        f"Its disk is gone, and the newest backup of it could not be brought back: {reason} "
        "Start it to try again, restore another backup, or remove its backups to begin with an empty disk."
    )
    transition = Transition(uow, builder, prices, now)
    transitions.failed(transition, version, code=BackupFailed.code, reason=words)
    uow.builders.make_due(builder.id, now)
