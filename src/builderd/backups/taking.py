"""Taking a backup: copy the disk in an instant, save the copy in peace, drop it.

Each step is recorded before the next one begins, and done again from its start where a service died in it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from builderd.backups import service as backups
from builderd.backups import upkeep
from builderd.backups.model import RETRY, SPARSE_FACTOR, Backup, BackupKind, BackupStatus, external_cause_of
from builderd.backups.port import RepositoryDamaged, SaveRequest, TenantRepository
from builderd.backups.upkeep import BackupContext, reason_of
from builderd.core.errors import InvalidState, NotFound, StoreUnavailable
from builderd.core.ids import DiskId
from builderd.database.unit_of_work import UnitOfWork
from builderd.versions.model import Version


async def take(context: BackupContext, backup: Backup) -> None:
    """Carry out an open backup until it is done or has failed.

    The disk is copied when it is its turn: a copy claims as much of the store as the disk, so few may wait. Raises
    ``StoreUnavailable`` and leaves it open: that is no failure of the backup, and the schedule comes back.
    """
    try:
        await upkeep.refuse_damaged(context, backup.tenant_id)
        async with context.repository(backup.tenant_id) as repository:
            if backup.status is BackupStatus.PLANNED:
                backup = await _copy_disk(context, backup)
            await _save(context, backup, repository)
    except StoreUnavailable:
        raise
    except Exception as error:
        await _fail(context, backup, error)
        return
    await context.drop_copy(backup)


async def _copy_disk(context: BackupContext, backup: Backup) -> Backup:
    """Copy the disk, replacing a half-made or older copy."""

    def load(uow: UnitOfWork) -> tuple[DiskId, Version]:
        builder = uow.builders.get(backup.builder_id)
        assert builder is not None, "a backup refers to its builder"
        if builder.deleted_at is not None:
            raise NotFound("The builder was deleted before the backup was taken.")
        version = uow.versions.require(builder.id, builder.version)
        return builder.disk, version

    disk, version = await context.app.store.read(load)
    copy = backup.copy
    assert copy is not None, "an open backup has a name for its copy"
    context.fault_point("CopyDisk.begun")
    await context.app.engine.disks.delete_disk(copy)
    if await context.app.engine.disks.disk(disk) is None:
        raise InvalidState("The builder has no files: it was never started, or its disk is gone.")
    now = context.app.clock.now()
    size = version.settings.resources.disk_bytes
    await context.app.engine.disks.clone_disk(disk, copy, size, for_backup=True)
    context.fault_point("CopyDisk.done")

    def record(uow: UnitOfWork) -> Backup:
        copied = replace(_as_is(uow, backup), status=BackupStatus.COPIED, created_at=now, version=version.number)
        uow.backups.save(copied)
        backups.notify(uow, copied, "backup.started", now, reason="backing up", details={"version": copied.version})
        return copied

    copied = await context.write(backup, record)
    context.fault_point("CopyDisk.recorded")
    return copied


def _as_is(uow: UnitOfWork, backup: Backup) -> Backup:
    """Read the backup again: deleting the builder may have dropped it while it was copied or saved."""
    uow.builders.get(backup.builder_id, lock=True)
    found = uow.backups.get(backup.id)
    assert found is not None, "a backup that is open is kept"
    return found


async def _save(context: BackupContext, backup: Backup, repository: TenantRepository) -> None:
    version = await context.app.store.read(lambda uow: uow.versions.get(backup.builder_id, backup.version))
    assert version is not None, "a backup refers to its version"
    assert backup.copy is not None, "an open backup has a name for its copy"
    limit = SPARSE_FACTOR * version.settings.resources.disk_bytes
    request = SaveRequest(backup.id, backup.builder_id, backup.copy, limit, backup.version)
    context.fault_point("SaveCopy.begun")
    async with context.progress(backup, "backup") as on_progress:
        saved = await context.app.backup_repository.save(repository, request, on_progress)
    context.fault_point("SaveCopy.done")
    now = context.app.clock.now()
    details = {
        "seconds": round((now - backup.created_at).total_seconds(), 3),
        "files": saved.files,
        "size_bytes": saved.size_bytes,
        "added_bytes": saved.added_bytes,
    }

    def record(uow: UnitOfWork) -> None:
        done = replace(
            _as_is(uow, backup),
            status=BackupStatus.DONE,
            finished_at=now,
            snapshot=saved.snapshot,
            files=saved.files,
            size_bytes=saved.size_bytes,
            added_bytes=saved.added_bytes,
            error="",
            hindrance=None,
            retry_at=None,
        )
        uow.backups.save(done)
        backups.notify(uow, done, "backup.finished", now, reason="backed up", details=details)

    # Record before releasing the repository: the upkeep would remove the snapshot as unknown.
    await context.write(backup, record)
    context.fault_point("SaveCopy.recorded")


async def _fail(context: BackupContext, backup: Backup, error: Exception) -> None:
    now, reason = context.app.clock.now(), reason_of(error)
    again = None
    if backup.kind is BackupKind.DELETED:
        # The last one of a deleted builder is retried, with delays that grow to six hours, until it would expire.
        waited = (backup.retry_at or backup.created_at) - backup.created_at
        again = now + max(RETRY, min(waited, timedelta(hours=6)))
        again = again if backup.expires_at is None or again < backup.expires_at else None
    status = BackupStatus.FAILED if again is None else BackupStatus.COPIED

    def record(uow: UnitOfWork) -> None:
        found = _as_is(uow, backup)
        if not found.is_open:
            return  # it was done, but the result was not recorded
        failed = replace(found, status=status, finished_at=now, error=reason, retry_at=again)
        uow.backups.save(replace(failed, hindrance=external_cause_of(error)))
        upkeep.mark(uow, context, backup.tenant_id, error)
        details = {"will_retry_at": again.isoformat() if again else None}
        backups.notify(uow, failed, "backup.failed", now, reason=reason, details=details)

    await context.write(backup, record)
    if again is None and backup.copy is not None:
        await context.drop_copy(backup)
    if isinstance(error, RepositoryDamaged):
        await upkeep.check_one(context, backup.tenant_id)
