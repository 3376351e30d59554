"""Credentials in SQL, sealed by the vault."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, RowMapping, bindparam, delete, insert, select, update

from builderd.domain.credentials import Credential
from builderd.domain.ids import BuilderId, TenantId
from builderd.store.tables import credentials
from builderd.store.types import omit, row_of

_key = (credentials.c.tenant_id == bindparam("of_tenant"), credentials.c.name == bindparam("of_name"))

_INSERT = insert(credentials)
_ONE = select(credentials).where(*_key)
_ALL = select(credentials).order_by(credentials.c.tenant_id, credentials.c.name)
_OF_TENANT = _ALL.where(credentials.c.tenant_id == bindparam("tenant"))
_UPDATE = update(credentials).where(*_key)
_DELETE = delete(credentials).where(*_key)


class Credentials:
    def __init__(self, connection: Connection, *, locks: bool) -> None:
        self._connection = connection
        self._all = _ALL.with_for_update() if locks else _ALL

    def add(self, credential: Credential) -> None:
        self._connection.execute(_INSERT, _row(credential))

    def get(self, tenant: TenantId, name: str) -> Credential | None:
        row = self._connection.execute(_ONE, {"of_tenant": tenant, "of_name": name}).mappings().first()
        return _credential(row) if row else None

    def list(self, tenant: TenantId) -> Sequence[Credential]:
        """Return the tenant's credentials, sorted by name."""
        return [_credential(row) for row in self._connection.execute(_OF_TENANT, {"tenant": tenant}).mappings()]

    def all(self) -> Sequence[Credential]:
        """Return all tenants' credentials; a unit of work that writes locks them until it ends."""
        return [_credential(row) for row in self._connection.execute(self._all).mappings()]

    def save(self, credential: Credential) -> None:
        """Update the row of this value. Raises ``LookupError`` when there is none."""
        key = {"of_tenant": credential.tenant_id, "of_name": credential.name}
        if self._connection.execute(_UPDATE, {**key, **omit(_row(credential), "tenant_id", "name")}).rowcount != 1:
            raise LookupError(f"no credential {credential.name} to save")

    def touch(self, tenant: TenantId, name: str, at: datetime, by: BuilderId) -> None:
        """Record its last use; no other field is written. Does nothing if it was deleted."""
        values = {"of_tenant": tenant, "of_name": name, "last_used_at": at, "last_used_by": by}
        self._connection.execute(_UPDATE, values)

    def delete(self, tenant: TenantId, name: str) -> None:
        """Delete it. Idempotent."""
        self._connection.execute(_DELETE, {"of_tenant": tenant, "of_name": name})


def _row(credential: Credential) -> dict[str, object]:
    return {**row_of(credential), "variables": list(credential.variables)}


def _credential(row: RowMapping) -> Credential:
    return Credential(**{**row, "variables": tuple(row["variables"]), "sealed": bytes(row["sealed"])})
