"""Credentials: stored sealed, listed by name, opened only when a builder starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from builderd.builders.model import Builder, Desired
from builderd.core.errors import Conflict, InstallFailed, NotFound, QuotaExceeded
from builderd.core.ids import BuilderId, TenantId
from builderd.credentials.model import (
    MAX_CREDENTIALS,
    Credential,
    Masker,
    PackageSources,
    associated_data_of,
    name_error,
    pack,
    read_sources,
    unpack,
)
from builderd.database.unit_of_work import UnitOfWork
from builderd.tokens.port import Vault
from builderd.versions.model import Version

#: A credential's name → its variables → their values.
Opened = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Use:
    """A builder whose current version uses the credential. ``needs_restart``: it runs with the previous values."""

    builder: Builder
    needs_restart: bool


@dataclass(frozen=True, slots=True)
class CredentialView:
    """A credential without its values."""

    credential: Credential
    uses: Sequence[Use]


def put(
    uow: UnitOfWork, vault: Vault, tenant_id: TenantId, name: str, values: Mapping[str, str], now: datetime
) -> tuple[Credential, bool]:
    """Seal and store all values of the credential; return True if it is new. Raises ``QuotaExceeded``."""
    sealed = vault.seal(pack(values), associated_data_of(tenant_id, name))
    stored = uow.credentials.get(tenant_id, name)
    if stored is not None:
        changed = replace(stored, variables=tuple(values), sealed=sealed, updated_at=now)
        uow.credentials.save(changed)
        return changed, False
    if len(uow.credentials.list(tenant_id)) >= MAX_CREDENTIALS:
        raise QuotaExceeded(f"There are {MAX_CREDENTIALS} credentials already: delete one that is not used.")
    made = Credential(tenant_id, name, tuple(values), sealed, created_at=now, updated_at=now)
    uow.credentials.add(made)
    return made, True


def get(uow: UnitOfWork, tenant_id: TenantId, name: str) -> CredentialView:
    """Return the credential. Raises ``NotFound`` as ``find`` does."""
    credential = find(uow, tenant_id, name)
    return CredentialView(credential, _uses(uow, credential))


def find(uow: UnitOfWork, tenant_id: TenantId, name: str) -> Credential:
    """Return the credential alone. Raises ``NotFound`` alike for a foreign, unknown or malformed name."""
    credential = None if name_error(name) else uow.credentials.get(tenant_id, name)
    if credential is None:
        raise NotFound(f"There is no credential named {name!r}: list yours with GET /api/v1/credentials.")
    return credential


def list_all(uow: UnitOfWork, tenant_id: TenantId) -> Sequence[CredentialView]:
    """Return all credentials of a tenant, by name."""
    return [CredentialView(one, _uses(uow, one)) for one in uow.credentials.list(tenant_id)]


def delete(uow: UnitOfWork, tenant_id: TenantId, name: str, *, force: bool) -> CredentialView:
    """Remove the credential. Raises ``Conflict`` while a current version uses it, unless forced."""
    view = get(uow, tenant_id, name)
    if view.uses and not force:
        users = ", ".join(sorted(use.builder.name for use in view.uses))
        raise Conflict(
            f"The credential {name!r} is used by {users}, which could not start again without it: "
            "leave it out there first, or delete it with ?force=true.",
            data={"builders": [use.builder.id for use in view.uses]},
        )
    uow.credentials.delete(tenant_id, name)
    return view


def missing(uow: UnitOfWork, tenant_id: TenantId, names: Sequence[str]) -> dict[int, str]:
    """Return index and name of the names that do not exist."""
    return {index: name for index, name in enumerate(names) if uow.credentials.get(tenant_id, name) is None}


def open_all(uow: UnitOfWork, vault: Vault, tenant_id: TenantId, names: Sequence[str]) -> Opened:
    """Return the values of these credentials. Raises ``NotFound`` for a deleted one, and the vault's errors."""
    found = [find(uow, tenant_id, name) for name in names]
    return {one.name: unpack(vault.open(one.sealed, one.associated_data)) for one in found}


def package_sources(
    uow: UnitOfWork, vault: Vault, tenant_id: TenantId, names: Sequence[str]
) -> tuple[PackageSources | None, Masker]:
    """Return the private indexes that these credentials name, and a masker of their values.

    Raises ``NotFound`` for a deleted one, ``InstallFailed`` for a value that names none, and the vault's errors.
    """
    opened = open_all(uow, vault, tenant_id, names)
    versions = [f"{name} {find(uow, tenant_id, name).updated_at.isoformat()}" for name in names]
    try:
        sources = read_sources(as_env(opened), versions)
    except ValueError as error:
        raise InstallFailed(f"The credentials {', '.join(names)}: {error}.") from error
    secrets = {value for values in opened.values() for value in values.values()}
    return sources, Masker({*secrets, *(sources.secrets.values() if sources else ())})


def all_values(uow: UnitOfWork, vault: Vault, tenant_id: TenantId) -> set[str]:
    """Return the values of all credentials of a tenant, to mask them in texts. Raises the vault's errors."""
    opened = open_all(uow, vault, tenant_id, [one.name for one in uow.credentials.list(tenant_id)])
    return {value for values in opened.values() for value in values.values()}


def as_env(secrets: Opened) -> dict[str, str]:
    """Return all variables together; for a name in two credentials the later one's value."""
    return {variable: value for values in secrets.values() for variable, value in values.items()}


def as_files(secrets: Opened) -> dict[str, str]:
    """Return ``<credential>/<variable>`` → value."""
    return {f"{name}/{variable}": value for name, values in secrets.items() for variable, value in values.items()}


def stale_among(uow: UnitOfWork, found: Sequence[tuple[Builder, Version]]) -> Collection[BuilderId]:
    """Return those of a tenant's builders that run with a credential that changed or was deleted since their start.

    Each comes with its current version. Reads nothing if none of them runs with one.
    """
    names = {
        builder.id: version.settings.credentials
        for builder, version in found
        if builder.desired is Desired.RUNNING and version.settings.credentials
    }
    if not names:
        return ()
    changed = {one.name: one.updated_at for one in uow.credentials.list(found[0][0].tenant_id)}
    made = {one.builder_id: one.created_at for one in uow.sandboxes.open_of_all(list(names))}
    return {
        builder
        for builder, created_at in made.items()
        if any(name not in changed or changed[name] > created_at for name in names[builder])
    }


def reseal(uow: UnitOfWork, vault: Vault) -> int:
    """Seal secrets that an earlier vault key sealed with the present one; return their number."""
    stale = [one for one in uow.credentials.all() if not vault.is_current(one.sealed)]
    for one in stale:
        uow.credentials.save(
            replace(one, sealed=vault.seal(vault.open(one.sealed, one.associated_data), one.associated_data))
        )
    return len(stale)


def _uses(uow: UnitOfWork, credential: Credential) -> Sequence[Use]:
    versions = uow.versions.current_with_credential(credential.tenant_id, credential.name)
    builders = uow.builders.get_all([version.builder_id for version in versions])
    found = [(builders[one.builder_id], one) for one in versions if one.builder_id in builders]
    stale = stale_among(uow, found)
    return [Use(builder, builder.id in stale) for builder, _ in found]
