"""The ledger in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, bindparam, case, insert, or_, select, update

from builderd.adapters.stores.sql.tables import ledger, ledger_months
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.months import month_of, months_between
from builderd.domain.prices import Segment, Sum, total

_at = bindparam("at", type_=ledger.c.ended_at.type)

_INSERT = insert(ledger)
_SELECT = select(ledger).order_by(ledger.c.started_at, ledger.c.id)
_OF_BUILDER = _SELECT.where(ledger.c.builder_id == bindparam("builder"))
_OF_BUILDERS = _SELECT.where(ledger.c.builder_id.in_(bindparam("builders", expanding=True)))
_CURRENT = _OF_BUILDER.where(ledger.c.ended_at.is_(None))
_OPEN_OF_TENANT = _SELECT.where(ledger.c.tenant_id == bindparam("tenant"), ledger.c.ended_at.is_(None))
_OPEN_OF_BUILDERS = _OF_BUILDERS.where(ledger.c.ended_at.is_(None))
_MONTH = select(ledger_months).where(
    ledger_months.c.builder_id == bindparam("builder"), ledger_months.c.month == bindparam("month")
)
_MONTHS_OF_BUILDERS = select(ledger_months).where(ledger_months.c.builder_id.in_(bindparam("builders", expanding=True)))
_MONTHS_OF_TENANT = select(ledger_months).where(
    ledger_months.c.tenant_id == bindparam("tenant"), ledger_months.c.month == bindparam("month")
)
_begins_before = ledger.c.started_at < bindparam("until", type_=_at.type)
_ends_after = or_(ledger.c.ended_at.is_(None), ledger.c.ended_at > bindparam("since", type_=_at.type))
_OVER = _OF_BUILDER.where(_begins_before, _ends_after)
_BUILDERS_OVER = select(ledger.c.builder_id).where(_begins_before, _ends_after).distinct().order_by(ledger.c.builder_id)
_SET_SPAN = (
    update(ledger)
    .where(ledger.c.id == bindparam("segment"))
    .values(started_at=bindparam("from", type_=_at.type), ended_at=bindparam("to", type_=_at.type))
)
_ADD_MONTH = insert(ledger_months)
_SET_MONTH = update(ledger_months).where(
    ledger_months.c.builder_id == bindparam("builder"), ledger_months.c.month == bindparam("of_month")
)
_CLOSE = (
    update(ledger)
    .where(ledger.c.builder_id == bindparam("builder"), ledger.c.ended_at.is_(None))
    .values(ended_at=case((ledger.c.started_at > _at, ledger.c.started_at), else_=_at))
)

#: Builders queried in one statement: SQLite takes 32,766 parameters, PostgreSQL 65,535.
BATCH = 10_000


class Ledger:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def open(self, segment: Segment) -> None:
        self._insert(segment)
        if segment.end is not None:
            self._count(segment, segment.end)

    def _insert(self, segment: Segment) -> None:
        row = {
            "tenant_id": segment.tenant_id,
            "builder_id": segment.builder_id,
            "billing": segment.billing,
            "started_at": segment.start,
            "ended_at": segment.end,
            "hourly_rate": segment.hourly_rate,
        }
        self._connection.execute(_INSERT, row)

    def close(self, builder: BuilderId, at: datetime) -> None:
        current = self.current(builder)
        if current is not None:
            self._connection.execute(_CLOSE, {"builder": builder, "at": at})
            self._count(current, max(at, current.start))

    def builders_over(self, since: datetime, until: datetime) -> Sequence[BuilderId]:
        return self._connection.execute(_BUILDERS_OVER, {"since": since, "until": until}).scalars().all()

    def skip(self, builder: BuilderId, since: datetime, until: datetime) -> None:
        values = {"builder": builder, "since": since, "until": until}
        for row in self._connection.execute(_OVER, values).mappings().all():
            self._cut(row["id"], _segment(row), since, until)

    def _cut(self, segment_id: int, segment: Segment, since: datetime, until: datetime) -> None:
        if segment.end is not None:
            self._discount(segment, max(segment.start, since), min(segment.end, until))
        goes_on = segment.end is None or segment.end > until
        if segment.start < since:
            self._set_span(segment_id, segment.start, since)
            if segment.end is None:
                self._count(segment, since)
            if goes_on:
                self._insert(replace(segment, start=until))
        elif goes_on:
            self._set_span(segment_id, until, segment.end)
        else:
            self._set_span(segment_id, since, since)

    def _set_span(self, segment_id: int, start: datetime, end: datetime | None) -> None:
        self._connection.execute(_SET_SPAN, {"segment": segment_id, "from": start, "to": end})

    def _count(self, segment: Segment, end: datetime) -> None:
        """Add a closed segment to the sums of the months it touches. Needs its builder locked, or a single writer."""
        for month, since, until in months_between(segment.start, end):
            self._add(segment, month, total([segment], end, since, until))

    def _discount(self, segment: Segment, since: datetime, until: datetime) -> None:
        """Subtract the part from ``since`` to ``until`` from the months it was added to: exact, reads no others."""
        for month, start, end in months_between(since, until):
            self._add(segment, month, -total([segment], until, start, end))

    def _add(self, segment: Segment, month: datetime, more: Sum) -> None:
        key = {"builder": segment.builder_id, "month": month}
        row = self._connection.execute(_MONTH, key).mappings().first()
        if row is None:
            values = {"builder_id": segment.builder_id, "month": month, "tenant_id": segment.tenant_id}
            self._connection.execute(_ADD_MONTH, {**values, "running": more.running, "paid": more.paid})
            return
        found = _sum(row) + more
        values = {"builder": segment.builder_id, "of_month": month, "running": found.running, "paid": found.paid}
        self._connection.execute(_SET_MONTH, values)

    def current(self, builder: BuilderId) -> Segment | None:
        row = self._connection.execute(_CURRENT, {"builder": builder}).mappings().first()
        return _segment(row) if row else None

    def of_builder(self, builder: BuilderId) -> Sequence[Segment]:
        return [_segment(row) for row in self._connection.execute(_OF_BUILDER, {"builder": builder}).mappings()]

    def of_builders(
        self, builders: Sequence[BuilderId], since: datetime | None = None, until: datetime | None = None
    ) -> Mapping[BuilderId, Sequence[Segment]]:
        bounds = [bound for bound, at in ((_ends_after, since), (_begins_before, until)) if at is not None]
        statement, span = _OF_BUILDERS.where(*bounds), {"since": since, "until": until}
        found: dict[BuilderId, list[Segment]] = {}
        for start in range(0, len(builders), BATCH):
            for segment in self._segments(statement, {"builders": builders[start : start + BATCH], **span}):
                found.setdefault(segment.builder_id, []).append(segment)
        return found

    def totals(self, builders: Sequence[BuilderId], now: datetime) -> Mapping[BuilderId, Sum]:
        found: dict[BuilderId, Sum] = {}
        for start in range(0, len(builders), BATCH):
            batch = {"builders": builders[start : start + BATCH]}
            self._sum_up(found, _MONTHS_OF_BUILDERS, batch)
            _add_open(found, self._segments(_OPEN_OF_BUILDERS, batch), now)
        return found

    def of_month(self, tenant: TenantId, now: datetime) -> Mapping[BuilderId, Sum]:
        found: dict[BuilderId, Sum] = {}
        self._sum_up(found, _MONTHS_OF_TENANT, {"tenant": tenant, "month": month_of(now)})
        _add_open(found, self.open_of(tenant), now, month_of(now))
        return found

    def open_of(self, tenant: TenantId) -> Sequence[Segment]:
        return self._segments(_OPEN_OF_TENANT, {"tenant": tenant})

    def _sum_up(self, found: dict[BuilderId, Sum], months: Select[Any], values: Mapping[str, Any]) -> None:
        for row in self._connection.execute(months, values).mappings():
            found[row["builder_id"]] = found.get(row["builder_id"], Sum()) + _sum(row)

    def _segments(self, statement: Select[Any], values: Mapping[str, Any]) -> Sequence[Segment]:
        return [_segment(row) for row in self._connection.execute(statement, values).mappings()]


def _add_open(
    found: dict[BuilderId, Sum], segments: Sequence[Segment], now: datetime, since: datetime | None = None
) -> None:
    for segment in segments:
        found[segment.builder_id] = found.get(segment.builder_id, Sum()) + total([segment], now, since)


def _sum(row: RowMapping) -> Sum:
    return Sum(row["running"], row["paid"])


def _segment(row: RowMapping) -> Segment:
    return Segment(
        tenant_id=row["tenant_id"],
        builder_id=row["builder_id"],
        billing=row["billing"],
        start=row["started_at"],
        end=row["ended_at"],
        hourly_rate=row["hourly_rate"],
    )
