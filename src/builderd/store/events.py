"""Events in SQL.

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

from sqlalchemy import ColumnElement, Select, bindparam, delete, func, insert, literal, or_, select

from builderd.domain.events import ALL, Event, prefix_of
from builderd.domain.ids import BuilderId, TenantId
from builderd.store.database import Kind
from builderd.store.repository import Repository
from builderd.store.tables import events
from builderd.store.types import omit, row_of


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
_OF_BUILDER = (
    select(events)
    .where(events.c.builder_id == bindparam("builder"), events.c.id > bindparam("after"))
    .order_by(events.c.id)
    .limit(bindparam("limit"))
)
_ONE = select(events).where(events.c.id == bindparam("event"))
_LAST_ID = select(func.max(events.c.id)).where(events.c.tenant_id == bindparam("tenant"))
_OLDEST = select(events.c.id, events.c.time).order_by(events.c.id).limit(bindparam("limit")).subquery()
_EXPIRE = delete(events).where(
    events.c.id.in_(select(_OLDEST.c.id).where(_OLDEST.c.time < bindparam("before", type_=events.c.time.type)))
)


class Events(Repository[Event]):
    _table, _record, _kind = events, Event, Kind.EVENTS

    def add(self, value: Event) -> Event:  # type: ignore[override]
        """Add it; return it with its id."""
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(_LOCK, {"tenant": value.tenant_id})
        self._note_write()
        (event_id,) = self._connection.execute(insert(events), self._row(value)).inserted_primary_key or (0,)
        return replace(value, id=event_id)

    def of_builder(self, builder: BuilderId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        """Return events with an id greater than ``after``, oldest first."""
        return self._all(_OF_BUILDER, builder=builder, after=after, limit=limit)

    def get(self, event_id: int) -> Event | None:
        return self._first(_ONE, event=event_id)

    def page(self, tenant: TenantId, query: EventQuery, *, page: int, per_page: int) -> tuple[Sequence[Event], int]:
        """Return one page (from 1), newest first, and the total number."""
        found = _filtered(tenant, query)
        total = self._scalar(select(func.count()).select_from(found.subquery()))
        return self._all(found.order_by(events.c.id.desc()).limit(per_page).offset((page - 1) * per_page)), total

    def following(self, tenant: TenantId, query: EventQuery, *, after: int, limit: int) -> Sequence[Event]:
        """Return events with an id greater than ``after``, oldest first.

        A tenant's events become visible in the order of their ids: none is added below one that was read.
        """
        return self._all(_filtered(tenant, query).where(events.c.id > after).order_by(events.c.id).limit(limit))

    def last_id(self, tenant: TenantId) -> int:
        """Return the greatest id of the tenant's events, 0 without any."""
        return self._scalar(_LAST_ID, tenant=tenant) or 0

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` of the oldest that happened before this time; return the number."""
        return self._change(_EXPIRE, before=before, limit=limit)

    def _row(self, value: Event) -> dict[str, Any]:
        return {**omit(row_of(value), "id"), "details": dict(value.details)}


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
