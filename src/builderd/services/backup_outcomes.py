"""Outcomes of backups and restores: wait until one is done or failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from builderd.domain.backups import Backup, BackupStatus, Restore, RestoreStatus, failure_of
from builderd.domain.errors import RETRY_AFTER, EngineUnavailable, NotFound
from builderd.domain.ids import BuilderId
from builderd.services.application import Application
from builderd.services.reach import Reach
from builderd.store import UnitOfWork

Work = TypeVar("Work", Backup, Restore)

#: How long to trust that a change of this process is signalled before looking again, in seconds.
LOOK_INTERVAL = 0.5


async def taken(application: Application, backup: Backup) -> Backup:
    """Wait for the backup and return it. Raises ``BackupFailed`` with the reason, or its external cause's error.

    Raises ``EngineUnavailable`` while the engine is out of reach; the backup is taken later.
    """
    found = await _ended(application, backup, lambda uow: uow.backups.get(backup.id), "backup")
    if found is None:
        raise NotFound("The backup was removed before it was done.")
    if found.status is BackupStatus.FAILED:
        raise failure_of(found)
    return found


async def restored(application: Application, restore: Restore) -> Restore:
    """Wait for the restore and return it. Raises ``BackupFailed`` with the reason, or its external cause's error.

    Raises ``EngineUnavailable`` while the engine is out of reach; the restore goes on later.
    """
    found = await _ended(application, restore, lambda uow: uow.restores.get(restore.id), "restore")
    if found is None:
        raise NotFound("The backup was removed before it was restored.")
    if found.status is RestoreStatus.FAILED:
        raise failure_of(found)
    return found


async def _ended(
    application: Application, work: Work, read: Callable[[UnitOfWork], Work | None], name: str
) -> Work | None:
    """Wait until the work is done or failed, and return it; None where it was removed before."""
    reach = Reach(application)
    while True:
        seen = application.signals.count(work.builder_id)
        found = await application.store.read(read)
        if found is None or not found.is_open:
            return found
        _check_reach(reach, work.builder_id, name)
        await application.signals.wait(work.builder_id, seen, LOOK_INTERVAL)


def _check_reach(reach: Reach, builder_id: BuilderId, name: str) -> None:
    if (lost := reach.lost()) is not None:
        raise EngineUnavailable(
            f"The {name} is stored and goes on, but may still fail: see GET /api/v1/builders/{builder_id}/backups. "
            f"{lost}",
            data={"uuid": builder_id},
            retry_after=RETRY_AFTER,
        )
