"""Tenants and their retry keys in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BindParameter, Select, bindparam, delete, or_, select, update

from builderd.core.errors import Conflict
from builderd.core.ids import BuilderId, TenantId
from builderd.database.repository import Repository
from builderd.database.tables import idempotency, tenants
from builderd.database.types import row_of
from builderd.tokens.model import Tenant

_SELECT = select(*(column for column in tenants.c if column.name != "spending_due_at"))
_BY_ID = _SELECT.where(tenants.c.id == bindparam("id"))
_BY_NAME = _SELECT.where(tenants.c.name == bindparam("name"))
_ALL = _SELECT.order_by(tenants.c.created_at, tenants.c.id)
_at: BindParameter[datetime] = bindparam("at", type_=tenants.c.spending_due_at.type)
_UPDATE = update(tenants).where(tenants.c.id == bindparam("tenant"))
# A transaction that makes the spending check due takes a shared lock on the tenant's row; one that postpones the check
# takes an exclusive lock, and so waits for them. Otherwise a check that is due already, where no row changes, could be
# postponed although an open transaction has just made it due again. Shared locks do not block each other.
_ROW = select(tenants.c.id).where(tenants.c.id == bindparam("tenant"))
_SHARED, _ALONE = _ROW.with_for_update(read=True, key_share=True), _ROW.with_for_update()
_SOONER = or_(tenants.c.spending_due_at.is_(None), tenants.c.spending_due_at > _at)
_POSTPONE = _UPDATE.where(tenants.c.spending_due_at == bindparam("seen", type_=_at.type)).values(spending_due_at=_at)
_DUE = (
    select(tenants.c.id, tenants.c.spending_due_at)
    .where(tenants.c.spending_due_at <= _at)
    .order_by(tenants.c.spending_due_at, tenants.c.id)
)


class Tenants(Repository[Tenant]):
    _table, _record = tenants, Tenant

    def get(self, tenant: TenantId) -> Tenant | None:
        return self._first(_BY_ID, id=tenant)

    def by_name(self, name: str) -> Tenant | None:
        return self._first(_BY_NAME, name=name)

    def all(self) -> Sequence[Tenant]:
        """Return all tenants, oldest first."""
        return self._all(_ALL)

    def are_several(self) -> bool:
        """Return True if there is more than one tenant."""
        return len(self._connection.execute(select(tenants.c.id).limit(2)).all()) > 1

    def cap(self, tenant: TenantId, amount: Decimal | None) -> None:
        """Set the spending cap of a month, and let the warning be sent again."""
        self._change(_UPDATE, tenant=tenant, spending_cap=amount, cap_warned_at=None)

    def warned(self, tenant: TenantId, at: datetime) -> None:
        """Record that the warning of the cap was sent."""
        self._change(_UPDATE, tenant=tenant, cap_warned_at=at)

    def make_spending_due(self, tenant: TenantId, at: datetime) -> None:
        """Check its spending at this time or earlier."""
        self._lock(_SHARED, tenant)
        self._change(_UPDATE.where(_SOONER).values(spending_due_at=_at), tenant=tenant, at=at)

    def spending_due(self, now: datetime) -> Sequence[tuple[TenantId, datetime]]:
        """Return the tenants whose spending check is due, with the due time, earliest first."""
        return [(row.id, row.spending_due_at) for row in self._connection.execute(_DUE, {"at": now})]

    def postpone_spending(self, tenant: TenantId, seen: datetime, at: datetime | None) -> bool:
        """Set the next check to ``at`` (None: after a change); return False if it is no longer due at ``seen``."""
        self._lock(_ALONE, tenant)
        return self._change(_POSTPONE, tenant=tenant, seen=seen, at=at) == 1

    def _lock(self, how: Select[Any], tenant: TenantId) -> None:
        # SQLite needs no lock: it has one writer.
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(how, {"tenant": tenant})


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
