"""Retry keys in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, select

from builderd.domain.errors import Conflict
from builderd.domain.ids import BuilderId, TenantId
from builderd.store.repository import Repository
from builderd.store.tables import idempotency
from builderd.store.types import row_of


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


class Idempotency(Repository[IdempotencyRecord]):
    _table, _record, _key = idempotency, IdempotencyRecord, ("tenant_id", "key")

    def get(self, tenant: TenantId, key: str) -> IdempotencyRecord | None:
        return self._first(select(idempotency).where(*_key), of_tenant=tenant, of_key=key)

    def add(self, value: IdempotencyRecord) -> None:
        """Add it. Raises ``Conflict`` if the tenant has used the key before."""
        if self.get(value.tenant_id, value.key) is not None:
            raise Conflict(f"The Idempotency-Key {value.key!r} was used already: send a new one for another call.")
        super().add(value)

    def delete(self, tenant: TenantId, key: str) -> None:
        self._change(delete(idempotency).where(*_key), of_tenant=tenant, of_key=key)

    def expire(self, before: datetime) -> int:
        """Delete records created before this time; return the number."""
        return self._change(_EXPIRE, before=before)

    def _row(self, value: IdempotencyRecord) -> dict[str, Any]:
        row = row_of(value)
        for name in ("headers", "body"):
            row[name] = None if row[name] is None else dict(row[name])
        return row
