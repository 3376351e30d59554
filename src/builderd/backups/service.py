"""Backups: request, list and remove them, their keys and health. The reconciler's schedule does the work."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from builderd.application import Application
from builderd.backups.model import Backup, BackupKey, BackupKind, BackupStatus, Restore, key_associated_data
from builderd.backups.port import TenantRepository
from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.builders.service import Caller
from builderd.core.errors import Conflict, InvalidState, NotFound
from builderd.core.ids import BackupId, DiskId, TenantId, is_id, new_id
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM, Event
from builderd.tokens.port import Vault

#: Expiry of a backup that a caller removed: in the past by every clock, also by one that was set back.
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
#: Message of ``NotFound`` for a backup.
UNKNOWN = "There is no backup of this id: list yours with GET /api/v1/backups."


# Ask for one


async def ask(application: Application, caller: Caller, builder_id: str) -> Backup:
    """Request a backup of the builder now. Raises ``InvalidState`` as ``request`` does, and without a disk."""
    builder = await application.store.read(lambda uow: builders.get(uow, caller.tenant_id, builder_id))
    if not builder.disk_is_made or await application.engine.disks.disk(builder.disk) is None:
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
    at = LONG_AGO if purge else now + application.backup_rules.keep_deleted
    for backup in uow.backups.of_builder(wanted.id):
        if backup.expires_at is None or backup.expires_at > at:
            uow.backups.save(replace(backup, expires_at=at))
    if not purge or not wanted.backup_interval_hours:
        return wanted
    purged = replace(wanted, backup_interval_hours=0)
    uow.builders.save(purged)
    return purged


def keep_last(uow: UnitOfWork, application: Application, builder: Builder, now: datetime) -> None:
    """Keep the disk of a builder that is deleted for a last backup, instead of removing it."""
    backup = plan(uow, application, builder, BackupKind.DELETED, builder.cause.actor, now)
    expires = now + application.backup_rules.keep_deleted
    uow.backups.save(replace(backup, status=BackupStatus.COPIED, copy=builder.disk, expires_at=expires))


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
    return [one for one in uow.backups.of_builder(builder.id) if one.is_kept(now)]


def of_tenant(uow: UnitOfWork, tenant_id: TenantId, now: datetime) -> Sequence[Backup]:
    """Return the backups of all the tenant's builders, deleted ones included, newest first."""
    return [one for one in uow.backups.of_tenant(tenant_id) if one.is_kept(now)]


def find(uow: UnitOfWork, tenant_id: TenantId, backup_id: str, now: datetime, builder_id: str | None = None) -> Backup:
    """Return the backup. Raises ``NotFound``, also for one of another builder if ``builder`` is given."""
    backup = uow.backups.get(BackupId(backup_id)) if is_id(backup_id) else None
    if backup is None or backup.tenant_id != tenant_id or not backup.is_kept(now):
        raise NotFound(UNKNOWN)
    if builder_id is not None and backup.builder_id != builders.get(uow, tenant_id, builder_id).id:
        raise NotFound(UNKNOWN)
    return backup


# Remove


def remove(uow: UnitOfWork, backup: Backup) -> None:
    """Hide the backup from all lists and remove it soon. Raises ``InvalidState`` while it is taken or restored."""
    if backup.is_open:
        raise InvalidState("The backup is being taken: wait until it is done.")
    uow.builders.get(backup.builder_id, lock=True)
    if any(one.backup_id == backup.id for one in uow.restores.open_of(backup.builder_id)):
        raise InvalidState("The backup is being restored: wait until that is done.")
    uow.backups.save(replace(backup, expires_at=LONG_AGO))


# Events


def when(backup: Backup) -> str:
    """Return the backup's time in words (UTC)."""
    return f"{backup.created_at:%Y-%m-%d %H:%M} UTC"


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


async def repository(application: Application, tenant_id: TenantId) -> TenantRepository:
    """Return the tenant's repository with its key, which the first backup makes.

    It counts as new without finished backups. To begin a new one after losing one, a tenant removes its backups.

    Raises the vault's error when the vault's key is missing.
    """
    now = application.clock.now()
    key, is_used = await application.store.read(
        lambda uow: (uow.backup_keys.get(tenant_id), uow.backups.has_done(tenant_id, now))
    )
    if key is None:
        key = await _make_key(application, tenant_id)
    return TenantRepository(tenant_id, application.vault.open(key.sealed, key.associated_data), is_new=not is_used)


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


@dataclass(frozen=True, slots=True)
class BackupHealth:
    """Backup counts: ``by_status`` counts the kept backups, and failed ones of the last seven days.

    ``failing`` are builders that want backups and whose last one failed, ``behind_seconds`` is the age of the oldest
    last good backup among builders that want some and have one, ``unproven`` are backups that lack data or
    failed their drill, ``damaged`` repositories that are damaged and not repaired yet.
    """

    by_status: Mapping[BackupStatus, int] = field(default_factory=dict)
    failing: int = 0
    behind_seconds: float = 0
    unproven: int = 0
    damaged: int = 0


def health(uow: UnitOfWork, now: datetime) -> BackupHealth:
    """Return the present backup health."""
    oldest = uow.backups.oldest_last_good() or now
    return BackupHealth(
        by_status=uow.backups.count_by_status(),
        failing=uow.backups.count_failing(),
        behind_seconds=max((now - oldest).total_seconds(), 0),
        unproven=uow.backups.count_damaged(),
        damaged=sum(bool(key.fault) for key in uow.backup_keys.all()),
    )
