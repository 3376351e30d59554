"""Keys of the tenants' backup repositories: made before a first backup, opened for each work, sealed anew."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import datetime

from builderd.domain.backups import BackupKey, key_associated_data
from builderd.domain.errors import Conflict
from builderd.domain.ids import TenantId
from builderd.ports.backup_repository import TenantRepository
from builderd.ports.vault import Vault
from builderd.services.application import Application
from builderd.store import UnitOfWork


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
