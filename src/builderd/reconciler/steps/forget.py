"""Forget: delete what a deleted builder has; its disk is left for a last backup if it has backups.

Recorded: the builder as deleted; billing ends, and the row is kept for the ledger.
Left when killed: some of its disks and logs, which the next try deletes; bundles, which the sweep removes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from builderd.application import Application
from builderd.backups import service as backups
from builderd.builders import candidates
from builderd.builders.model import Status
from builderd.code import service as bundles
from builderd.core.ids import BuilderId, DiskId
from builderd.core.members import MemberAway
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition


async def forget(app: Application, item: WorkItem) -> Result:
    """Delete disks and logs; the record marks the builder as deleted. Raises what the engine raises."""
    engine, forgotten = app.engine, item.builder
    is_kept = forgotten.backup_interval_hours > 0 and await _can_back_up(app, forgotten.disk)
    for disk in forgotten.disks[1:] if is_kept else forgotten.disks:
        await engine.disks.delete_disk(disk)
    await engine.logs.delete_logs(forgotten.id)

    def record(transition: Transition) -> None:
        if is_kept:
            backups.keep_last(transition.uow, app, transition.builder, transition.now)
        _deleted(transition)

    return Result(record, partial(_drop_bundles, app, forgotten.id))


def _deleted(transition: Transition) -> None:
    """Record the deletion: billing ends, and the row is kept for the ledger."""
    uow, builder, now = transition.uow, transition.builder, transition.now
    uow.ledger.close(builder.id, now)
    uow.build_logs.delete(builder.id)
    uow.qa_reports.delete(builder.id)
    uow.acceptances.delete(builder.id)
    uow.leases.delete_of(builder.id)
    changed = candidates.change(uow, builder, Status.DELETED, builder.cause.reason, now)
    uow.builders.save(replace(changed, deleted_at=now))


async def _can_back_up(app: Application, disk: DiskId) -> bool:
    """Return True unless the disk is gone, or lies on a member that is away: earlier backups are kept then."""
    try:
        return await app.engine.disks.disk(disk) is not None
    except MemberAway:
        return False


async def _drop_bundles(app: Application, builder_id: BuilderId) -> None:
    versions = await app.store.read(lambda uow: uow.versions.list(builder_id))
    for bundle_hash in {version.bundle_hash for version in versions}:
        await bundles.drop_unused(app, bundle_hash)
