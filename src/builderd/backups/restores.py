"""Restores: request one into the builder, as a new builder, as a drill, or in place of a lost disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from builderd.application import Application
from builderd.backups import service as backups
from builderd.backups.model import Backup, BackupKind, BackupStatus, Restore, RestoreKind, RestoreStatus
from builderd.builders import candidates
from builderd.builders import service as builders
from builderd.builders.model import Builder, Candidate, Status, name_error
from builderd.builders.service import Caller
from builderd.core.errors import InvalidState, NameTaken, NotFound, ValidationFailed
from builderd.core.ids import BuilderId, DiskId, RestoreId, new_id
from builderd.core.resources import allocation_of
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM
from builderd.money import admission
from builderd.versions.model import Version


def request(uow: UnitOfWork, application: Application, caller: Caller, backup: Backup, now: datetime) -> Restore:
    """Request a restore of the backup into its builder, whose present disk is backed up first.

    Raises ``InvalidState``, ``NotFound`` if it was removed meanwhile, and at once everything that would prevent the
    deployment of its version: ``ValidationFailed``, ``QuotaExceeded``, ``NoCapacity``.
    """
    _refuse_unfinished(backup)
    builder = builders.get(uow, caller.tenant_id, backup.builder_id, lock=True)
    _lock_stored(uow, backup, now)
    if any(one.kind is RestoreKind.SAME for one in uow.restores.open_of(builder.id)):
        raise InvalidState("A backup of this builder is being restored: wait until that is done.")
    version = version_of(uow, backup)
    builders.check_settings(uow, application, caller.tenant_id, version.settings)
    switched = replace(builder, candidate=Candidate(version.number))
    admission.admit_change(uow, application, builder, switched, now, version=version)
    safety = backups.plan(uow, application, builder, BackupKind.BEFORE_RESTORE, caller.actor, now)
    wanted = _planned(application, backup, RestoreKind.SAME, caller.actor, now)
    uow.restores.add(replace(wanted, safety=safety.id))
    return replace(wanted, safety=safety.id)


def request_new(
    uow: UnitOfWork, application: Application, caller: Caller, backup: Backup, name: str, now: datetime
) -> Restore:
    """Request a restore of the backup as a new builder.

    Raises ``ValidationFailed`` or ``NameTaken`` for the name, ``NotFound`` if the backup was removed meanwhile, and at
    once everything that would prevent the builder's creation: ``ValidationFailed``, ``QuotaExceeded``, ``NoCapacity``.
    """
    _refuse_unfinished(backup)
    _lock_stored(uow, backup, now)
    if (error := name_error(name)) is not None:
        raise ValidationFailed({"as": [error]})
    if (other := uow.builders.by_name(caller.tenant_id, name)) is not None:
        raise NameTaken(
            f"The name {name!r} is taken by your builder {other.id}: choose another name.", data={"uuid": other.id}
        )
    settings = version_of(uow, backup).settings
    builders.check_settings(uow, application, caller.tenant_id, settings)
    needed = allocation_of(settings.resources, running=True, further=len(settings.processes))
    admission.admit(uow, application, caller.tenant_id, needed, now)
    wanted = replace(_planned(application, backup, RestoreKind.NEW, caller.actor, now), name=name)
    uow.restores.add(wanted)
    return wanted


def drill(uow: UnitOfWork, application: Application, backup: Backup, actor: str, now: datetime) -> Restore:
    """Request a drill: restore the backup privately, to prove that it can be restored. Raises ``NotFound``."""
    _lock_stored(uow, backup, now)
    wanted = _planned(application, backup, RestoreKind.DRILL, actor, now)
    uow.restores.add(wanted)
    return wanted


@dataclass(frozen=True, slots=True)
class Loss:
    """Newest backup of a missing disk, None without one, and whether a recovery is under way."""

    backup: Backup | None = None
    recovering: bool = False


def loss(uow: UnitOfWork, builder_id: BuilderId, now: datetime) -> Loss:
    """Return the newest usable backup of a builder's disk, and whether a recovery is under way."""
    recovering = any(one.kind is RestoreKind.RECOVERY for one in uow.restores.open_of(builder_id))
    found = uow.backups.of_builder(builder_id)
    done = (one for one in found if one.status is BackupStatus.DONE and one.is_kept(now))
    return Loss(next(done, None), recovering)


def recover(uow: UnitOfWork, application: Application, builder: Builder, disk: DiskId, now: datetime) -> None:
    """Request a restore of the newest backup in place of the lost ``disk``.

    Does nothing if that is in progress, or the builder has another disk meanwhile.
    """
    lost = loss(uow, builder.id, now)
    if lost.backup is None or lost.recovering or builder.disk != disk:
        return
    wanted = _planned(application, lost.backup, RestoreKind.RECOVERY, SYSTEM, now)
    uow.restores.add(wanted)
    reason = f"its disk is gone: the backup of {backups.when(lost.backup)} is being brought back"
    changed = replace(builder, status_reason=reason, updated_at=now)
    if builder.status is Status.RUNNING and builder.handover is None:
        changed = candidates.change(uow, builder, Status.CREATING, reason, now)
    uow.builders.save(changed)
    backups.notify(
        uow, wanted, "disk.lost", now, reason=reason, details={"disk": builder.disk, "backup": lost.backup.id}
    )


def version_of(uow: UnitOfWork, backup: Backup) -> Version:
    """Return the version to serve after a restore: the backup's, with at least the builder's present disk size."""
    builder = uow.builders.get(backup.builder_id)
    assert builder is not None, "a backup refers to its builder"
    version, current = (uow.versions.get(builder.id, number) for number in (backup.version, builder.version))
    assert version is not None, "a backup refers to its version"
    assert current is not None, "a builder's versions are always stored"
    resources, disk = version.settings.resources, current.settings.resources.disk
    settings = replace(version.settings, resources=replace(resources, disk=max(resources.disk, disk)))
    return replace(version, settings=settings)


def _lock_stored(uow: UnitOfWork, backup: Backup, now: datetime) -> None:
    """Read the backup again under its builder's lock, which upkeep takes too. Raises ``NotFound`` if it was removed."""
    uow.builders.get(backup.builder_id, lock=True)
    found = uow.backups.get(backup.id)
    if found is None or not found.is_kept(now):
        raise NotFound(backups.UNKNOWN)


def _refuse_unfinished(backup: Backup) -> None:
    if backup.status is not BackupStatus.DONE:
        raise InvalidState(f"The backup is {backup.status}: only one that is done can be restored.")


def _planned(application: Application, backup: Backup, kind: RestoreKind, actor: str, now: datetime) -> Restore:
    return Restore(
        id=RestoreId(new_id()),
        tenant_id=backup.tenant_id,
        builder_id=backup.builder_id,
        backup_id=backup.id,
        kind=kind,
        status=RestoreStatus.PLANNED,
        actor=actor,
        owner=application.instance,
        created_at=now,
        disk=DiskId(new_id()),
    )
