"""Tenants and their retry keys in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Column, ColumnElement, ForeignKey, Integer, Table, Text, delete, select, update

from builderd.core.errors import Conflict
from builderd.core.ids import BuilderId, TenantId
from builderd.database.columns import NAME, document, metadata
from builderd.database.repository import Repository
from builderd.database.types import ExactDecimal, UtcDateTime, row_of
from builderd.tokens.model import Tenant

tenants = Table(
    "tenants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", NAME, nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("spending_cap", ExactDecimal),
    Column("cap_warned_at", UtcDateTime),
    # Time of the next check of its spending; not a field of ``Tenant``.
    Column("spending_due_at", UtcDateTime, index=True),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("body_hash", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    # No foreign key: the record names a builder before it exists, or one that was never created.
    Column("builder_id", Text),
    Column("status", Integer),
    Column("headers", document()),
    Column("body", document()),
    Column("version", Integer),
)


_SELECT = select(*(column for column in tenants.c if column.name != "spending_due_at"))


class Tenants(Repository[Tenant]):
    _table, _record = tenants, Tenant

    def get(self, tenant: TenantId) -> Tenant | None:
        return self._first(_SELECT.where(tenants.c.id == tenant))

    def by_name(self, name: str) -> Tenant | None:
        return self._first(_SELECT.where(tenants.c.name == name))

    def all(self) -> Sequence[Tenant]:
        """Return all tenants, oldest first."""
        return self._all(_SELECT.order_by(tenants.c.created_at, tenants.c.id))

    def are_several(self) -> bool:
        """Return True if there is more than one tenant."""
        return len(self._connection.execute(select(tenants.c.id).limit(2)).all()) > 1

    def cap(self, tenant: TenantId, amount: Decimal | None) -> None:
        """Set the spending cap of a month, and let the warning be sent again."""
        self._change(update(tenants).where(tenants.c.id == tenant), spending_cap=amount, cap_warned_at=None)

    def warned(self, tenant: TenantId, at: datetime) -> None:
        """Record that the warning of the cap was sent."""
        self._change(update(tenants).where(tenants.c.id == tenant), cap_warned_at=at)

    def make_spending_due(self, tenant: TenantId, at: datetime) -> None:
        """Check its spending at this time or earlier."""
        self._lock(tenant, shared=True)
        is_later = tenants.c.spending_due_at.is_(None) | (tenants.c.spending_due_at > at)
        self._change(update(tenants).where(tenants.c.id == tenant, is_later), spending_due_at=at)

    def spending_due(self, now: datetime) -> Sequence[tuple[TenantId, datetime]]:
        """Return the tenants whose spending check is due, with the due time, earliest first."""
        due = select(tenants.c.id, tenants.c.spending_due_at).where(tenants.c.spending_due_at <= now)
        rows = self._connection.execute(due.order_by(tenants.c.spending_due_at, tenants.c.id))
        return [(row.id, row.spending_due_at) for row in rows]

    def postpone_spending(self, tenant: TenantId, seen: datetime, at: datetime | None) -> bool:
        """Set the next check to ``at`` (None: after a change); return False if it is no longer due at ``seen``."""
        self._lock(tenant, shared=False)
        is_due = tenants.c.spending_due_at == seen
        return self._change(update(tenants).where(tenants.c.id == tenant, is_due), spending_due_at=at) == 1

    def _lock(self, tenant: TenantId, *, shared: bool) -> None:
        # Who makes the check due takes a shared lock, who postpones it an exclusive one, and so waits for the others.
        # Otherwise a check that is due already, where no row changes, could be postponed although an open transaction
        # has just made it due again. Shared locks do not block each other.
        # SQLite needs no lock: it has one writer.
        if self._connection.dialect.name == "postgresql":
            row = select(tenants.c.id).where(tenants.c.id == tenant)
            self._connection.execute(row.with_for_update(read=shared, key_share=shared))


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


def _is(tenant: TenantId, key: str) -> ColumnElement[bool]:
    return (idempotency.c.tenant_id == tenant) & (idempotency.c.key == key)


class Idempotency(Repository[IdempotencyRecord]):
    _table, _record, _key = idempotency, IdempotencyRecord, ("tenant_id", "key")

    def get(self, tenant: TenantId, key: str) -> IdempotencyRecord | None:
        return self._first(select(idempotency).where(_is(tenant, key)))

    def add(self, value: IdempotencyRecord) -> None:
        """Add it. Raises ``Conflict`` if the tenant has used the key before."""
        if self.get(value.tenant_id, value.key) is not None:
            raise Conflict(f"The Idempotency-Key {value.key!r} was used already: send a new one for another call.")
        super().add(value)

    def delete(self, tenant: TenantId, key: str) -> None:
        self._change(delete(idempotency).where(_is(tenant, key)))

    def expire(self, before: datetime) -> int:
        """Delete records created before this time; return the number."""
        return self._change(delete(idempotency).where(idempotency.c.created_at < before))

    def _row(self, value: IdempotencyRecord) -> dict[str, Any]:
        row = row_of(value)
        for name in ("headers", "body"):
            row[name] = None if row[name] is None else dict(row[name])
        return row
