"""Retry keys in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from builderd.domain.errors import Conflict
from builderd.domain.ids import BuilderId, TenantId
from builderd.store.tables import idempotency
from builderd.store.types import omit, row_of


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """A retry key of a tenant. ``status`` is None until the first call was answered.

    ``version`` is the number of the version that the call deploys. ``owner`` is the instance that works on the first
    call; ``body_hash`` the sha256 of method, path and body.
    """

    tenant_id: TenantId
    key: str
    body_hash: str
    owner: str
    created_at: datetime
    builder_id: BuilderId | None = None
    version: int | None = None
    status: int | None = None
    headers: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None


_key = (idempotency.c.tenant_id == bindparam("of_tenant"), idempotency.c.key == bindparam("of_key"))

_EXPIRE = delete(idempotency).where(idempotency.c.created_at < bindparam("before"))


class Idempotency:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, tenant: TenantId, key: str) -> IdempotencyRecord | None:
        row = self._connection.execute(select(idempotency).where(*_key), _keyed(tenant, key)).mappings().first()
        return IdempotencyRecord(**row) if row else None

    def add(self, record: IdempotencyRecord) -> None:
        """Add it. Raises ``Conflict`` if the tenant has used the key before."""
        if self.get(record.tenant_id, record.key) is not None:
            raise Conflict(f"The Idempotency-Key {record.key!r} was used already: send a new one for another call.")
        self._connection.execute(insert(idempotency), _row(record))

    def save(self, record: IdempotencyRecord) -> None:
        """Update the row of this value. Raises ``LookupError`` when there is none."""
        values = {**_keyed(record.tenant_id, record.key), **omit(_row(record), "tenant_id", "key")}
        if self._connection.execute(update(idempotency).where(*_key), values).rowcount != 1:
            raise LookupError(f"no retry key {record.key!r} to save")

    def delete(self, tenant: TenantId, key: str) -> None:
        self._connection.execute(delete(idempotency).where(*_key), _keyed(tenant, key))

    def expire(self, before: datetime) -> int:
        """Delete records created before this time; return the number."""
        return self._connection.execute(_EXPIRE, {"before": before}).rowcount


def _keyed(tenant: TenantId, key: str) -> dict[str, Any]:
    return {"of_tenant": tenant, "of_key": key}


def _row(record: IdempotencyRecord) -> dict[str, Any]:
    row = row_of(record)
    for name in ("headers", "body"):
        row[name] = None if row[name] is None else dict(row[name])
    return row
