"""Backups: request, list, restore and remove them. The reconciler's backup schedule does the work."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from builderd.domain.backups import (
    Backup,
    BackupKey,
    BackupKind,
    BackupStatus,
    Restore,
    RestoreKind,
    RestoreStatus,
    failure_of,
    key_associated_data,
)
from builderd.domain.builders import Builder, Candidate, name_error
from builderd.domain.errors import Conflict, EngineUnavailable, InvalidState, NameTaken, NotFound, ValidationFailed
from builderd.domain.events import SYSTEM, Event
from builderd.domain.ids import BackupId, BuilderId, DiskId, RestoreId, TenantId, is_id, new_id
from builderd.domain.machine_faults import RETRY_AFTER
from builderd.domain.quotas import allocation_of
from builderd.domain.versions import Version
from builderd.ports.backup_repository import TenantRepository
from builderd.ports.store import UnitOfWork
from builderd.ports.vault import Vault
from builderd.services import admission, builders
from builderd.services.application import Application
from builderd.services.builders import Caller
from builderd.services.reach import Reach

#: How long to trust that a change of this process is signalled before looking again, in seconds.
LOOK_INTERVAL = 0.5
#: Expiry of a backup that a caller removed: in the past by every clock, also by one that was set back.
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_NONE = "There is no backup of this id: list yours with GET /api/v1/backups."


# Ask for one


async def ask(application: Application, caller: Caller, builder_id: str) -> Backup:
    """Request a backup of the builder now. Raises ``InvalidState`` as ``request`` does, and without a disk."""
    builder = await application.store.read(lambda uow: builders.get(uow, caller.tenant_id, builder_id))
    if not builder.disk_is_made or await application.engine.disk(builder.disk) is None:
        raise InvalidState(f"The builder is {builder.status} and has no files to back up: wait until it runs.")
    now = application.clock.now()
    planned = await application.store.write(lambda uow: request(uow, application, caller, builder_id, now))
    application.signals.change(planned.builder_id)
    return planned


def request(uow: UnitOfWork, application: Application, caller: Caller, builder_id: str, now: datetime) -> Backup:
    """Request a backup now. Raises ``InvalidState`` while another one waits or is being taken."""
    builder = builders.get(uow, caller.tenant_id, builder_id, lock=True)
    if any(one.is_open and one.kind is not BackupKind.DELETED for one in uow.backups.of_builder(builder.id)):
        raise InvalidState("A backup of this builder waits or is being taken: ask again when that is done.")
    return plan(uow, application, builder, BackupKind.REQUESTED, caller.actor, now)


def plan(
    uow: UnitOfWork, application: Application, builder: Builder, kind: BackupKind, actor: str, now: datetime
) -> Backup:
    """Record a planned backup of the version that the builder serves now."""
    backup = Backup(
        id=BackupId(new_id()),
        tenant_id=builder.tenant_id,
        builder_id=builder.id,
        builder_name=builder.name,
        version=builder.version,
        kind=kind,
        status=BackupStatus.PLANNED,
        actor=actor,
        owner=application.instance,
        created_at=now,
        copy=DiskId(new_id()),
    )
    uow.backups.add(backup)
    return backup


def delete_builder(
    uow: UnitOfWork, application: Application, caller: Caller, builder_id: str, now: datetime, *, purge: bool
) -> Builder:
    """Delete the builder. Unless ``purge``, its backups are kept for a while, and a last one is taken if it had any."""
    wanted = builders.delete(uow, application, caller, builder_id, now)
    _expire_all(uow, wanted.id, LONG_AGO if purge else now + application.backup_rules.keep_deleted)
    if not purge or not wanted.backup_interval_hours:
        return wanted
    purged = replace(wanted, backup_interval_hours=0)
    uow.builders.save(purged)
    return purged


def _expire_all(uow: UnitOfWork, builder: BuilderId, at: datetime) -> None:
    for backup in uow.backups.of_builder(builder):
        if backup.expires_at is None or backup.expires_at > at:
            uow.backups.save(replace(backup, expires_at=at))


def keep_last(uow: UnitOfWork, application: Application, builder: Builder, now: datetime) -> None:
    """Hold the disk of a builder that is deleted for a last backup, instead of removing it."""
    backup = plan(uow, application, builder, BackupKind.DELETED, builder.cause.actor, now)
    expires = now + application.backup_rules.keep_deleted
    uow.backups.save(replace(backup, status=BackupStatus.HELD, copy=builder.disk, expires_at=expires))


def keep_idle(uow: UnitOfWork, application: Application, builder: Builder, now: datetime) -> None:
    """Plan a backup of a builder that was stopped for idleness, unless one is planned already."""
    if not builder.backup_interval_hours:
        return
    if not any(one.status is BackupStatus.PLANNED for one in uow.backups.of_builder(builder.id)):
        plan(uow, application, builder, BackupKind.IDLE, SYSTEM, now)


# Look


def of_builder(uow: UnitOfWork, tenant_id: TenantId, builder_id: str, now: datetime) -> Sequence[Backup]:
    """Return a builder's backups, newest first, including those in progress and failed ones."""
    builder = builders.get(uow, tenant_id, builder_id)
    return [one for one in uow.backups.of_builder(builder.id) if _is_there(one, now)]


def of_tenant(uow: UnitOfWork, tenant_id: TenantId, now: datetime) -> Sequence[Backup]:
    """Return the backups of all the tenant's builders, deleted ones included, newest first."""
    return [one for one in uow.backups.of_tenant(tenant_id) if _is_there(one, now)]


def find(uow: UnitOfWork, tenant_id: TenantId, backup_id: str, now: datetime, builder_id: str | None = None) -> Backup:
    """Return the backup. Raises ``NotFound``, also for one of another builder if ``builder`` is given."""
    backup = uow.backups.get(BackupId(backup_id)) if is_id(backup_id) else None
    if backup is None or backup.tenant_id != tenant_id or not _is_there(backup, now):
        raise NotFound(_NONE)
    if builder_id is not None and backup.builder_id != builders.get(uow, tenant_id, builder_id).id:
        raise NotFound(_NONE)
    return backup


def _is_there(backup: Backup, now: datetime) -> bool:
    return backup.expires_at is None or backup.expires_at > now


async def taken(application: Application, backup: Backup) -> Backup:
    """Wait for the backup and return it. Raises ``BackupFailed`` with the reason, or its external cause's error.

    Raises ``EngineUnavailable`` while the engine is out of reach; the backup is taken later.
    """
    reach = Reach(application)
    while True:
        seen = application.signals.count(backup.builder_id)
        found = await application.store.read(lambda uow: uow.backups.get(backup.id))
        if found is None:
            raise NotFound("The backup was removed before it was done.")
        if found.status is BackupStatus.FAILED:
            raise failure_of(found)
        if found.status is BackupStatus.DONE:
            return found
        _check_reach(reach, backup.builder_id, "backup")
        await application.signals.wait(backup.builder_id, seen, LOOK_INTERVAL)


async def restored(application: Application, restore: Restore) -> Restore:
    """Wait for the restore and return it. Raises ``BackupFailed`` with the reason, or its external cause's error.

    Raises ``EngineUnavailable`` while the engine is out of reach; the restore goes on later.
    """
    reach = Reach(application)
    while True:
        seen = application.signals.count(restore.builder_id)
        found = await application.store.read(lambda uow: uow.restores.get(restore.id))
        if found is None:
            raise NotFound("The backup was removed before it was restored.")
        if found.status is RestoreStatus.FAILED:
            raise failure_of(found)
        if found.status is RestoreStatus.DONE:
            return found
        _check_reach(reach, restore.builder_id, "restore")
        await application.signals.wait(restore.builder_id, seen, LOOK_INTERVAL)


def _check_reach(reach: Reach, builder_id: BuilderId, what: str) -> None:
    if (lost := reach.lost()) is not None:
        raise EngineUnavailable(
            f"The {what} is stored and goes on, but may still fail: see GET /api/v1/builders/{builder_id}/backups. "
            f"{lost}",
            data={"uuid": builder_id},
            retry_after=RETRY_AFTER,
        )


# Remove


def remove(uow: UnitOfWork, backup: Backup, now: datetime) -> None:
    """Hide the backup from all lists and remove it soon. Raises ``InvalidState`` while it is taken or restored."""
    if backup.is_open:
        raise InvalidState("The backup is being taken: wait until it is done.")
    uow.builders.get(backup.builder_id, lock=True)
    if any(one.backup_id == backup.id for one in uow.restores.open_of(backup.builder_id)):
        raise InvalidState("The backup is being restored: wait until that is done.")
    uow.backups.save(replace(backup, expires_at=LONG_AGO))


# Restore


def restore(uow: UnitOfWork, application: Application, caller: Caller, backup: Backup, now: datetime) -> Restore:
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
    safety = plan(uow, application, builder, BackupKind.BEFORE_RESTORE, caller.actor, now)
    wanted = _restore(application, backup, RestoreKind.SAME, caller.actor, now)
    uow.restores.add(replace(wanted, safety=safety.id))
    return replace(wanted, safety=safety.id)


def restore_as(
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
    admission.admit(uow, application, caller.tenant_id, allocation_of(settings.resources, running=True), now)
    wanted = replace(_restore(application, backup, RestoreKind.NEW, caller.actor, now), name=name)
    uow.restores.add(wanted)
    return wanted


def drill(uow: UnitOfWork, application: Application, backup: Backup, actor: str, now: datetime) -> Restore:
    """Request a drill: restore the backup privately, to prove that it can be restored. Raises ``NotFound``."""
    _lock_stored(uow, backup, now)
    wanted = _restore(application, backup, RestoreKind.DRILL, actor, now)
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
    done = (one for one in found if one.status is BackupStatus.DONE and _is_there(one, now))
    return Loss(next(done, None), recovering)


def when(backup: Backup) -> str:
    """Return the backup's time in words (UTC)."""
    return f"{backup.created_at:%Y-%m-%d %H:%M} UTC"


def recover(uow: UnitOfWork, application: Application, builder: Builder, disk: DiskId, now: datetime) -> None:
    """Request a restore of the newest backup in place of the lost ``disk``.

    Does nothing if that is in progress, or the builder has another disk meanwhile.
    """
    lost = loss(uow, builder.id, now)
    if lost.backup is None or lost.recovering or builder.disk != disk:
        return
    wanted = _restore(application, lost.backup, RestoreKind.RECOVERY, SYSTEM, now)
    uow.restores.add(wanted)
    reason = f"its disk is gone: the backup of {when(lost.backup)} is being brought back"
    uow.builders.save(replace(builder, status_reason=reason, updated_at=now))
    notify(uow, wanted, "disk.lost", now, reason=reason, details={"disk": builder.disk, "backup": lost.backup.id})


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
    if found is None or not _is_there(found, now):
        raise NotFound(_NONE)


def _refuse_unfinished(backup: Backup) -> None:
    if backup.status is not BackupStatus.DONE:
        raise InvalidState(f"The backup is {backup.status}: only one that is done can be restored.")


def _restore(application: Application, backup: Backup, kind: RestoreKind, actor: str, now: datetime) -> Restore:
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


# The repository of a tenant


async def repository(application: Application, tenant_id: TenantId) -> TenantRepository:
    """Return the tenant's repository with its key, which the first backup makes.

    Raises the vault's error when the vault's key is missing.
    """
    now = application.clock.now()
    key, holds = await application.store.read(
        lambda uow: (uow.backup_keys.get(tenant_id), holds_something(uow, tenant_id, now))
    )
    if key is None:
        key = await _make_key(application, tenant_id)
    return TenantRepository(tenant_id, application.vault.open(key.sealed, key.associated_data), is_new=not holds)


def holds_something(uow: UnitOfWork, tenant_id: TenantId, now: datetime) -> bool:
    """Return whether the tenant's repository has finished backups that were not removed.

    To begin a new repository after losing one, a tenant removes its backups; those do not count.
    """
    return uow.backups.has_done(tenant_id, now)


async def make_keys(application: Application) -> None:
    """Make repository keys for tenants without one, before their first backup.

    A copy of the database then opens all later backups.
    """
    for tenant_id in await application.store.read(lambda uow: uow.backup_keys.lacking()):
        await _make_key(application, tenant_id)


async def _make_key(application: Application, tenant_id: TenantId) -> BackupKey:
    sealed = application.vault.seal(secrets.token_bytes(32), key_associated_data(tenant_id))
    now = application.clock.now()
    made = BackupKey(tenant_id, sealed, created_at=now, checked_at=now, pruned_at=now)
    try:
        await application.store.write(lambda uow: uow.backup_keys.add(made))
    except Conflict:
        found = await application.store.read(lambda uow: uow.backup_keys.get(tenant_id))
        assert found is not None, "another transaction has just made it"
        return found
    return made


def reseal(uow: UnitOfWork, vault: Vault) -> int:
    """Seal keys that an earlier vault key sealed with the present one; return their number."""
    stale = [one.tenant_id for one in uow.backup_keys.all() if not vault.is_current(one.sealed)]
    for tenant_id in stale:
        # Read again, to keep what a repository check recorded meanwhile.
        key = uow.backup_keys.get(tenant_id, lock=True)
        if key is not None:
            uow.backup_keys.save(
                replace(key, sealed=vault.seal(vault.open(key.sealed, key.associated_data), key.associated_data))
            )
    return len(stale)


# Events


def notify(
    uow: UnitOfWork, about: Backup | Restore, kind: str, now: datetime, *, reason: str, details: Mapping[str, Any]
) -> None:
    """Record an event of the builder: ``backup.…`` or ``restore.…``."""
    uow.events.add(
        Event(
            tenant_id=about.tenant_id,
            builder_id=about.builder_id,
            time=now,
            type=kind,
            actor=about.actor,
            reason=reason,
            details={"id": about.id, "kind": about.kind.value, **details},
        )
    )
