"""Events, webhooks and their deliveries in SQL.

A follower asks for ids greater than the last it saw, so an event must never become visible after one with a greater
id. On SQLite, where one transaction writes at a time, ids become visible in order. On PostgreSQL an id is drawn before
its transaction commits; therefore each transaction that adds events first takes the tenant's advisory lock and holds
it until it ends, so that the ids of a tenant's events become visible in order, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    RowMapping,
    Select,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from builderd.core.ids import BuilderId, TenantId, WebhookId
from builderd.database.columns import COUNTER, NEVER_REUSE_IDS, document, metadata
from builderd.database.connection import Kind
from builderd.database.repository import Repository
from builderd.database.types import ForeignText, UtcDateTime, enum_column, omit, row_of
from builderd.events.model import ALL, Attempt, Delivery, DeliveryStatus, Event, Webhook, WebhookStatus, prefix_of
from builderd.linux.atomic_files import from_stored

events = Table(
    "events",
    metadata,
    Column("id", COUNTER, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("builder_id", Text, ForeignKey("builders.id")),
    Column("time", UtcDateTime, nullable=False),
    Column("type", Text, nullable=False),
    Column("actor", ForeignText, nullable=False),
    Column("reason", ForeignText, nullable=False),
    Column("details", document(), nullable=False),
    Index("ix_events_builder_id_id", "builder_id", "id"),
    Index("ix_events_tenant_id_id", "tenant_id", "id"),
    **NEVER_REUSE_IDS,
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False, index=True),
    Column("url", Text, nullable=False),
    Column("events", document(), nullable=False),
    Column("secret", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", ForeignText, nullable=False),
    Column("place", BigInteger, nullable=False),
    Column("status", enum_column(WebhookStatus), nullable=False),
    Column("status_reason", ForeignText, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("held_until", UtcDateTime),
    Column("last_success_at", UtcDateTime),
    Column("token_id", Text),
    Column("expires_at", UtcDateTime),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("webhook_id", Text, ForeignKey("webhooks.id"), nullable=False),
    # No foreign key: a delivery may outlive its event.
    Column("event_id", BigInteger, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Column("status", enum_column(DeliveryStatus), nullable=False),
    Column("attempts", document(), nullable=False),
    UniqueConstraint("webhook_id", "event_id"),
    Index("ix_deliveries_webhook_id_status_due_at", "webhook_id", "status", "due_at"),
)


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Filters of events. ``types`` are patterns of ``domain.events``, none for all; ``until`` is exclusive."""

    builder: BuilderId | None = None
    types: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None


#: First key of the advisory locks; the second is a hash of the tenant's id. Tenants with equal hashes share a lock.
LOCK_CLASS = 0x62640001

_LOCK = select(func.pg_advisory_xact_lock(literal(LOCK_CLASS), func.hashtext(bindparam("tenant"))))


class Events(Repository[Event]):
    _table, _record = events, Event

    def add(self, value: Event) -> Event:  # type: ignore[override]
        """Add it; return it with its id."""
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(_LOCK, {"tenant": value.tenant_id})
        self._written.add(Kind.EVENTS)
        row = {**omit(row_of(value), "id"), "details": dict(value.details)}
        (event_id,) = self._connection.execute(insert(events), row).inserted_primary_key or (0,)
        return replace(value, id=event_id)

    def of_builder(self, builder: BuilderId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        """Return events with an id greater than ``after``, oldest first."""
        found = select(events).where(events.c.builder_id == builder, events.c.id > after)
        return self._all(found.order_by(events.c.id).limit(limit))

    def get(self, event_id: int) -> Event | None:
        return self._first(select(events).where(events.c.id == event_id))

    def page(self, tenant: TenantId, query: EventQuery, *, page: int, per_page: int) -> tuple[Sequence[Event], int]:
        """Return one page (from 1), newest first, and the total number."""
        found = _filtered(tenant, query)
        total = self._connection.execute(select(func.count()).select_from(found.subquery())).scalar_one()
        return self._all(found.order_by(events.c.id.desc()).limit(per_page).offset((page - 1) * per_page)), total

    def following(self, tenant: TenantId, query: EventQuery, *, after: int, limit: int) -> Sequence[Event]:
        """Return events with an id greater than ``after``, oldest first.

        A tenant's events become visible in the order of their ids: none is added below one that was read.
        """
        return self._all(_filtered(tenant, query).where(events.c.id > after).order_by(events.c.id).limit(limit))

    def last_id(self, tenant: TenantId) -> int:
        """Return the greatest id of the tenant's events, 0 without any."""
        return self._connection.scalar(select(func.max(events.c.id)).where(events.c.tenant_id == tenant)) or 0

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` of the oldest that happened before this time; return the number."""
        oldest = select(events.c.id, events.c.time).order_by(events.c.id).limit(limit).subquery()
        return self._change(delete(events).where(events.c.id.in_(select(oldest.c.id).where(oldest.c.time < before))))


def _filtered(tenant: TenantId, query: EventQuery) -> Select[Any]:
    found = select(events)
    if query.builder is None:
        found = found.where(events.c.tenant_id == tenant)
    else:
        # With the plain column, SQLite would read all events of the tenant by the index of that.
        found = found.where(events.c.builder_id == query.builder, func.coalesce(events.c.tenant_id, "") == tenant)
    if query.since is not None:
        found = found.where(events.c.time >= query.since)
    if query.until is not None:
        found = found.where(events.c.time < query.until)
    if query.types and ALL not in query.types:
        found = found.where(or_(*(_is_of(pattern) for pattern in query.types)))
    return found


def _is_of(pattern: str) -> ColumnElement[bool]:
    prefix = prefix_of(pattern)
    return events.c.type == pattern if prefix is None else events.c.type.startswith(prefix, autoescape=True)


_hook, _delivery = webhooks.c, deliveries.c
_is_active = _hook.status == WebhookStatus.ACTIVE
_waits = _delivery.status == DeliveryStatus.PENDING
_ALL = select(webhooks).order_by(_hook.created_at, _hook.id)


class Webhooks(Repository[Webhook]):
    _table, _record, _kind, _may_be_gone = webhooks, Webhook, Kind.WEBHOOKS, True

    def get(self, webhook: WebhookId, *, lock: bool = False) -> Webhook | None:
        """Return it. ``lock`` makes other writers of this row wait until the unit of work ends.

        Lock it before writing its deliveries, and save only a value that was read with the lock.
        """
        found = select(webhooks).where(_hook.id == webhook)
        return self._first(found.with_for_update(key_share=True) if lock and self._locks else found)

    def list(self, tenant: TenantId) -> Sequence[Webhook]:
        """Return the tenant's webhooks, oldest first."""
        return self._all(_ALL.where(_hook.tenant_id == tenant))

    def all(self) -> Sequence[Webhook]:
        """Return the webhooks of all tenants."""
        return self._all(_ALL)

    def delete(self, webhook: WebhookId) -> None:
        """Delete it with its deliveries."""
        self._change(delete(deliveries).where(_delivery.webhook_id == webhook))
        self._change(delete(webhooks).where(_hook.id == webhook))

    def expired(self, now: datetime) -> Sequence[WebhookId]:
        """Return the active ones whose token has expired."""
        return self._connection.scalars(select(_hook.id).where(_is_active, _hook.expires_at <= now)).all()

    def with_undelivered_events(self) -> Sequence[WebhookId]:
        """Return the active ones whose tenant has events after their cursor (``place``)."""
        is_behind = exists().where(events.c.tenant_id == _hook.tenant_id, events.c.id > _hook.place)
        return self._connection.scalars(select(_hook.id).where(_is_active, is_behind)).all()

    def due(self, now: datetime) -> Sequence[WebhookId]:
        """Return the active ones that are not paused and have due deliveries."""
        is_unpaused = _hook.held_until.is_(None) | (_hook.held_until <= now)
        is_due = exists().where(_delivery.webhook_id == _hook.id, _waits, _delivery.due_at <= now)
        return self._connection.scalars(select(_hook.id).where(_is_active, is_unpaused, is_due)).all()

    def _row(self, value: Webhook) -> dict[str, Any]:
        return {**row_of(value), "events": list(value.events)}

    def _value(self, row: RowMapping) -> Webhook:
        return Webhook(**{**row, "events": tuple(row["events"])})


class Deliveries(Repository[Delivery]):
    _table, _record, _may_be_gone = deliveries, Delivery, True

    def get(self, delivery: str) -> Delivery | None:
        return self._first(select(deliveries).where(_delivery.id == delivery))

    def claim(self, webhook: WebhookId, now: datetime, until: datetime) -> Delivery | None:
        """Return the oldest due one and make it due at ``until``: of concurrent callers, one gets it."""
        due = select(deliveries).where(_delivery.webhook_id == webhook, _waits, _delivery.due_at <= now)
        # SKIP LOCKED: another control plane that asks at the same time gets the next delivery.
        oldest = due.order_by(_delivery.due_at, _delivery.event_id).limit(1).with_for_update(skip_locked=True)
        row = self._connection.execute(oldest).mappings().first()
        if row is None:
            return None
        self._change(update(deliveries).where(_delivery.id == row["id"]), due_at=until)
        return self._value(row)

    def pending(self, webhook: WebhookId) -> int:
        """Return the number of pending ones."""
        found = select(func.count()).select_from(deliveries).where(_delivery.webhook_id == webhook, _waits)
        return self._connection.execute(found).scalar_one()

    def page(self, webhook: WebhookId, *, page: int, per_page: int) -> tuple[Sequence[Delivery], int]:
        """Return one page (from 1), newest first, and the total number."""
        found = select(deliveries).where(_delivery.webhook_id == webhook)
        total = self._connection.execute(select(func.count()).select_from(found.subquery())).scalar_one()
        found = found.order_by(_delivery.event_id.desc()).limit(per_page).offset((page - 1) * per_page)
        return self._all(found), total

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` finished ones created before this time; return the number.

        Those of a disabled webhook count as finished.
        """
        is_over = ~_waits | _delivery.webhook_id.in_(select(_hook.id).where(~_is_active))
        over = select(_delivery.id).where(is_over, _delivery.created_at < before).limit(limit)
        return self._change(delete(deliveries).where(_delivery.id.in_(over)))

    def _row(self, value: Delivery) -> dict[str, Any]:
        attempts = [{**row_of(attempt), "at": attempt.at.isoformat()} for attempt in value.attempts]
        return {**row_of(value), "attempts": attempts}

    def _value(self, row: RowMapping) -> Delivery:
        attempts = [
            from_stored(Attempt, {**attempt, "at": datetime.fromisoformat(attempt["at"])})
            for attempt in row["attempts"]
        ]
        return Delivery(**{**row, "attempts": tuple(attempts)})
