"""The ledger in SQL, with its sums by month and day."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    Double,
    ForeignKey,
    Index,
    RowMapping,
    Select,
    Table,
    Text,
    bindparam,
    case,
    cast,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    union_all,
    update,
)

from builderd.core.ids import BuilderId, TenantId
from builderd.database.columns import COUNTER, builder_columns, index_where, metadata, unique_where
from builderd.database.repository import Repository, batches, damage_named, read_each
from builderd.database.types import EpochSeconds, ExactDecimal, Microseconds, UtcDateTime, enum_column, omit, row_of
from builderd.money.model import (
    DAY,
    SECONDS_PER_HOUR,
    Billing,
    Segment,
    Sum,
    days_between,
    month_of,
    months_between,
    next_month,
    total,
)

#: A segment that continues.
OPEN = "ended_at IS NULL"

ledger = Table(
    "ledger",
    metadata,
    Column("id", COUNTER, primary_key=True),
    *builder_columns(),
    Column("billing", enum_column(Billing), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("hourly_rate", ExactDecimal, nullable=False),
    CheckConstraint("ended_at >= started_at", name="ended_at"),
    Index("ix_ledger_builder_id_started_at", "builder_id", "started_at"),
    Index("ix_ledger_tenant_id_started_at", "tenant_id", "started_at"),
    unique_where("uq_ledger_open", "builder_id", OPEN),
    # All that a sum over a tenant's open segments reads.
    index_where("ix_ledger_open", OPEN, "tenant_id", "billing", "hourly_rate", "started_at", "ended_at"),
)

# Sums of closed segments by calendar month, so that a total reads no more than one row a month.
ledger_months = Table(
    "ledger_months",
    metadata,
    Column("builder_id", Text, ForeignKey("builders.id"), primary_key=True),
    Column("month", UtcDateTime, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
    Column("running", ExactDecimal, nullable=False),
    Column("paid", ExactDecimal, nullable=False),
    Index("ix_ledger_months_tenant_id_month", "tenant_id", "month"),
)

# Sums of ``ledger_months`` over all builders of a tenant, so that its total does not read a row of each.
tenant_months = Table(
    "tenant_months",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("month", UtcDateTime, primary_key=True),
    Column("running", ExactDecimal, nullable=False),
    Column("paid", ExactDecimal, nullable=False),
    # JSON: {"1": [running, paid], …} by day of the month, the numbers as text. A month's row is read and written with
    # each segment that closes; rows of days would be a read and a write more.
    Column("days", Text, nullable=False, server_default=text("'{}'")),
)


_at = bindparam("at", type_=ledger.c.ended_at.type)

_SELECT = select(ledger).order_by(ledger.c.started_at, ledger.c.id)
_OPEN_SEGMENTS = _SELECT.where(ledger.c.ended_at.is_(None))
_of_tenant = ledger.c.tenant_id == bindparam("tenant")
_begins_before = ledger.c.started_at < bindparam("until", type_=_at.type)
_ends_after = or_(ledger.c.ended_at.is_(None), ledger.c.ended_at > bindparam("since", type_=_at.type))
_since, _until, _now = (bindparam(name, type_=_at.type) for name in ("since", "until", "now"))


def _within(column: ColumnElement[datetime], bound: ColumnElement[datetime], *, later: bool) -> ColumnElement[datetime]:
    return case((column < bound if later else column > bound, bound), else_=column)


# A segment that begins after the span counts as nothing, as it does in ``Segment.seconds``.
_begin = _within(ledger.c.started_at, _since, later=True)
_end = _within(func.coalesce(ledger.c.ended_at, _now), _until, later=False)
_is_inside = _end > _begin
_seconds = func.sum(case((_is_inside, EpochSeconds(_end) - EpochSeconds(_begin)), else_=0))
_microseconds = func.sum(case((_is_inside, Microseconds(_end) - Microseconds(_begin)), else_=0))
# One row for each state and rate, of which there are few: the sums of them are exact.
_TIMES_OF_TENANT_IN = (
    select(ledger.c.billing, ledger.c.hourly_rate, _seconds.label("seconds"), _microseconds.label("microseconds"))
    .where(_of_tenant, _begins_before, _ends_after)
    .group_by(ledger.c.billing, ledger.c.hourly_rate)
)
# Only what the index of open segments has: when each began, not before the one time nor after the other.
_began = _within(_within(ledger.c.started_at, _since, later=True), _now, later=False)


_OPEN_TIMES_OF_TENANT = (
    select(
        ledger.c.billing,
        ledger.c.hourly_rate,
        func.count().label("number"),
        func.sum(EpochSeconds(_began)).label("seconds"),
        func.sum(Microseconds(_began)).label("microseconds"),
    )
    .where(_of_tenant, text(OPEN))
    .group_by(ledger.c.billing, ledger.c.hourly_rate)
)
_OPEN_RATES_OF_TENANT = (
    select(ledger.c.billing, ledger.c.hourly_rate, func.count().label("number"))
    .where(_of_tenant, text(OPEN))
    .group_by(ledger.c.billing, ledger.c.hourly_rate)
)
# The order of a month's costs, in floating point numbers: closed months are sums already, open segments few.
_closed_costs = select(ledger_months.c.builder_id, cast(ledger_months.c.paid, Double).label("paid")).where(
    ledger_months.c.tenant_id == bindparam("tenant"), ledger_months.c.month == bindparam("since", type_=_at.type)
)
# Not as a condition, with which SQLite would read the index of all segments by their start.
_open_seconds = case(
    (ledger.c.started_at < _now, bindparam("end", type_=BigInteger) - EpochSeconds(_began) + 1), else_=0
)
_open_costs = select(ledger.c.builder_id, (_open_seconds * cast(ledger.c.hourly_rate, Double)).label("paid")).where(
    _of_tenant, text(OPEN)
)
_costs = union_all(_closed_costs, _open_costs).subquery()
_cost = func.sum(_costs.c.paid)
_DEAREST = (
    select(_costs.c.builder_id, func.count().over().label("number"))
    .group_by(_costs.c.builder_id)
    .having(_cost > 0)
    .order_by(_cost.desc(), _costs.c.builder_id)
    .limit(bindparam("limit"))
)
_REACHING = select(_costs.c.builder_id).group_by(_costs.c.builder_id).having(_cost >= bindparam("paid", type_=Double))
#: Far more than the error of a month's sum in floating point numbers, of which the exact sums are made afterwards.
ROUNDING = 1e-9
SECOND = timedelta(seconds=1)
UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Before and after all segments.
EVER, NEVER = UNIX_EPOCH, datetime(9999, 1, 1, tzinfo=UTC)


class Ledger(Repository[Segment]):
    _table = ledger

    def open(self, segment: Segment) -> None:
        """Open a segment; the builder must have none open."""
        self.add(segment)
        if segment.end is not None:
            self._count(segment, segment.end)

    def close(self, builder: BuilderId, at: datetime) -> None:
        """Close the open segment, if any, never before its start."""
        if (current := self.current(builder)) is not None:
            self.end(current, at)

    def end(self, current: Segment, at: datetime) -> None:
        """Close this segment, which is its builder's open one, never before its start."""
        end = max(at, current.start)
        is_open = (ledger.c.builder_id == current.builder_id) & ledger.c.ended_at.is_(None)
        self._change(update(ledger).where(is_open), ended_at=end)
        self._count(current, end)

    def end_at(self, now: datetime) -> None:
        """End all segments that end after ``now``, and begin those that go on no later. Not in the port."""
        later = _SELECT.where(or_(ledger.c.started_at > now, ledger.c.ended_at > now))
        for row in self._connection.execute(later).mappings().all():
            segment = self._value(row)
            if segment.end is not None:
                for month, start, end in months_between(max(segment.start, now), segment.end):
                    days = {day: -spent for day, spent in _days(segment, start, end).items()}
                    self._add(segment, month, -total([segment], segment.end, start, end), days)
            span = {"started_at": min(segment.start, now), "ended_at": segment.end and now}
            self._change(update(ledger).where(ledger.c.id == row["id"]), **span)

    def _count(self, segment: Segment, end: datetime) -> None:
        """Add a closed segment to the sums of the months it touches. Needs its builder locked, or a single writer."""
        for month, since, until in months_between(segment.start, end):
            self._add(segment, month, total([segment], end, since, until), _days(segment, since, until))

    def _add(self, segment: Segment, month: datetime, more: Sum, days: Days) -> None:
        self._add_to_tenant(segment.tenant_id, month, more, days)
        of_month = (ledger_months.c.builder_id == segment.builder_id) & (ledger_months.c.month == month)
        row = self._connection.execute(select(ledger_months).where(of_month)).mappings().first()
        if row is None:
            values = {"builder_id": segment.builder_id, "month": month, "tenant_id": segment.tenant_id}
            self._change(insert(ledger_months), **values, running=more.running, paid=more.paid)
            return
        found = _sum(row) + more
        self._change(update(ledger_months).where(of_month), running=found.running, paid=found.paid)

    def _add_to_tenant(self, tenant: TenantId, month: datetime, more: Sum, days: Days) -> None:
        """Add to the tenant's month, whose row other transactions of the tenant wait for until this one ends."""
        of_month = (tenant_months.c.tenant_id == tenant) & (tenant_months.c.month == month)
        row = self._connection.execute(select(tenant_months).where(of_month).with_for_update()).mappings().first()
        if row is None:
            values = {"tenant_id": tenant, "month": month, "running": more.running, "paid": more.paid}
            self._change(insert(tenant_months), **values, days=stored_days(days))
            return
        found = _sum(row) + more
        values = {"running": found.running, "paid": found.paid, "days": stored_days(days, row["days"])}
        self._change(update(tenant_months).where(of_month), **values)

    def current(self, builder: BuilderId) -> Segment | None:
        with damage_named(builder):
            return self._first(_OPEN_SEGMENTS.where(ledger.c.builder_id == builder))

    def of_builder(self, builder: BuilderId) -> Sequence[Segment]:
        return self._all(_SELECT.where(ledger.c.builder_id == builder))

    def of_builders(
        self, builders: Sequence[BuilderId], since: datetime | None = None, until: datetime | None = None
    ) -> Mapping[BuilderId, Sequence[Segment]]:
        """Return whole segments that overlap [since, until), by builder; builders without one are left out."""
        statement = _SELECT
        if since is not None:
            statement = statement.where(or_(ledger.c.ended_at.is_(None), ledger.c.ended_at > since))
        if until is not None:
            statement = statement.where(ledger.c.started_at < until)
        found: dict[BuilderId, list[Segment]] = {}
        for segment in self._segments(statement, builders):
            found.setdefault(segment.builder_id, []).append(segment)
        return found

    def totals(self, builders: Sequence[BuilderId], now: datetime) -> Mapping[BuilderId, Sum]:
        """Return the sums of all time up to now; builders without a segment are left out. O(months) for each."""
        return self._sums(select(ledger_months), builders, now)

    def month_of_builders(
        self, builders: Sequence[BuilderId], now: datetime, month: datetime | None = None
    ) -> Mapping[BuilderId, Sum]:
        """Return the sums of a month up to now, for those of these builders that are billed in it.

        Without ``month``, its start, it is the current one.
        """
        month = month or month_of(now)
        of_month = select(ledger_months).where(ledger_months.c.month == month)
        return self._sums(of_month, builders, min(now, next_month(month)), month)

    def rates_of_builders(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, Decimal]:
        """Return the hourly rates of the open segments of these builders."""
        return {one.builder_id: one.hourly_rate for one in self._segments(_OPEN_SEGMENTS, builders)}

    def month_of_tenant(self, tenant: TenantId, now: datetime, month: datetime | None = None) -> Sum:
        """Return the sum of a month up to now: of the current one without ``month``, its start."""
        month = month or month_of(now)
        closed = self._closed_of_tenant(tenant, tenant_months.c.month == month)
        return sum(map(_sum, closed), Sum()) + self._open_of_tenant(tenant, min(now, next_month(month)), month)

    def total_of_tenant(
        self, tenant: TenantId, now: datetime, since: datetime | None = None, until: datetime | None = None
    ) -> Sum:
        """Return the sum inside [since, until), of all time without either, up to now."""
        if since is None and until is None:
            return sum(map(_sum, self._closed_of_tenant(tenant)), Sum()) + self._open_of_tenant(tenant, now, EVER)
        values = {"tenant": tenant, "now": now, "since": since or EVER, "until": until or NEVER}
        rows = self._connection.execute(_TIMES_OF_TENANT_IN, values)
        times = ((row, _exact(row.seconds, row.microseconds)) for row in rows)
        return sum((_sum_of_time(row.billing, row.hourly_rate, time) for row, time in times), Sum())

    def days_of_tenant(
        self, tenant: TenantId, now: datetime, since: datetime, until: datetime
    ) -> Mapping[datetime, Sum]:
        """Return the sums up to now of days in [since, until), both midnights in UTC, by their starts.

        A day without any is left out. The cost grows with the months, and with open segments.
        """
        is_within = (tenant_months.c.month >= month_of(since)) & (tenant_months.c.month < until)
        found: dict[datetime, Sum] = {}
        for row in self._closed_of_tenant(tenant, is_within):
            found.update({row["month"].replace(day=day): spent for day, spent in _read(row["days"]).items()})
        for day, spent in open_days(self._connection, tenant, since, min(now, until)).items():
            found[day] = found.get(day, Sum()) + spent
        return {day: found[day] for day in sorted(found) if since <= day < until}

    def _closed_of_tenant(self, tenant: TenantId, *wanted: ColumnElement[bool]) -> Sequence[RowMapping]:
        """Return the tenant's months with sums of closed segments."""
        found = select(tenant_months).where(tenant_months.c.tenant_id == tenant, *wanted)
        return self._connection.execute(found).mappings().all()

    def _open_of_tenant(self, tenant: TenantId, now: datetime, since: datetime) -> Sum:
        """Return the sum of open segments from their beginnings, but not before ``since``, to ``now``."""
        until = _exact_seconds(now)
        rows = self._connection.execute(_OPEN_TIMES_OF_TENANT, {"tenant": tenant, "now": now, "since": since})
        times = ((row, row.number * until - _exact(row.seconds, row.microseconds)) for row in rows)
        return sum((_sum_of_time(row.billing, row.hourly_rate, time) for row, time in times), Sum())

    def rates_of_tenant(self, tenant: TenantId) -> Mapping[Billing, tuple[int, Decimal]]:
        """Return the number of open segments and the sum of their hourly rates, by billing state."""
        found: dict[Billing, tuple[int, Decimal]] = {}
        for row in self._connection.execute(_OPEN_RATES_OF_TENANT, {"tenant": tenant}):
            number, rate = found.get(row.billing, (0, Decimal(0)))
            found[row.billing] = (number + row.number, rate + row.hourly_rate * row.number)
        return found

    def dearest(self, tenant: TenantId, now: datetime, month: datetime, limit: int) -> tuple[Sequence[BuilderId], int]:
        """Return the builders that cost most in a month up to now, and how many of them cost anything."""
        end = min(now, next_month(month))
        values = {"tenant": tenant, "since": month, "now": end, "end": (end - UNIX_EPOCH) // SECOND, "limit": limit}
        rows = self._connection.execute(_DEAREST, values).all()
        return [row.builder_id for row in rows], rows[0].number if rows else 0

    def reaching(self, tenant: TenantId, now: datetime, money: Decimal) -> Sequence[BuilderId]:
        """Return a tenant's builders that cost so much this month if their open segments last to its end.

        Includes deleted ones, and perhaps some that stay just below: sums are made in floating point numbers.
        """
        month, end = month_of(now), next_month(now)
        paid = float(money * SECONDS_PER_HOUR) * (1 - ROUNDING)
        values = {"tenant": tenant, "since": month, "now": end, "end": (end - UNIX_EPOCH) // SECOND, "paid": paid}
        return self._connection.scalars(_REACHING, values).all()

    def _sums(
        self, months: Select[Any], builders: Sequence[BuilderId], end: datetime, month: datetime | None = None
    ) -> Mapping[BuilderId, Sum]:
        """Return the sums of these months, and of the open segments from the start of ``month`` up to ``end``."""
        found: defaultdict[BuilderId, Sum] = defaultdict(Sum)
        for some in batches(builders):
            of_some = months.where(ledger_months.c.builder_id.in_(some))
            for row in self._connection.execute(of_some).mappings():
                found[row["builder_id"]] += _sum(row)
        for segment in self._segments(_OPEN_SEGMENTS, builders):
            found[segment.builder_id] += total([segment], end, month)
        return dict(found)

    def _segments(self, statement: Select[Any], builders: Sequence[BuilderId]) -> Iterator[Segment]:
        """Yield the segments of these builders that can be decoded."""
        for some in batches(builders):
            of_some = statement.where(ledger.c.builder_id.in_(some))
            yield from read_each(self._connection, of_some, {}, lambda row: self._value(row._mapping), "builder_id")

    def _row(self, value: Segment) -> dict[str, Any]:
        return {**omit(row_of(value), "start", "end"), "started_at": value.start, "ended_at": value.end}

    def _value(self, row: RowMapping) -> Segment:
        return Segment(**omit(dict(row), "id", "started_at", "ended_at"), start=row["started_at"], end=row["ended_at"])


def _days(segment: Segment, since: datetime, until: datetime) -> Days:
    """Return the sums of a segment's part within one month by day of the month."""
    return {day.day: total([segment], until, start, end) for day, start, end in days_between(since, until)}


def _sum(row: RowMapping) -> Sum:
    return Sum(row["running"], row["paid"])


def _exact(seconds: int, microseconds: int) -> Decimal:
    return Decimal(int(seconds)) + Decimal(int(microseconds)) / 1_000_000


def _sum_of_time(billing: Billing, rate: Decimal, seconds: Decimal) -> Sum:
    return Sum(seconds if billing is Billing.RUNNING else Decimal(0), seconds * rate)


#: Sums of the days of one month, by day of the month.
Days = Mapping[int, Sum]

SECONDS = 24 * 3600

_since_day, _day_end = (bindparam(name, type_=ledger.c.started_at.type) for name in ("since", "end"))
# When each open segment began, not before the first day nor after the end: few groups, whatever their number.
_day_began = case(
    (ledger.c.started_at < _since_day, _since_day),
    (ledger.c.started_at > _day_end, _day_end),
    else_=ledger.c.started_at,
)
_day = EpochSeconds(_day_began) // literal(SECONDS, BigInteger, literal_execute=True)
_OPEN_BY_DAY = (
    select(
        ledger.c.billing,
        ledger.c.hourly_rate,
        _day.label("day"),
        func.count().label("number"),
        func.sum(EpochSeconds(_day_began)).label("seconds"),
        func.sum(Microseconds(_day_began)).label("microseconds"),
    )
    .where(ledger.c.tenant_id == bindparam("tenant"), text(OPEN))
    .group_by(ledger.c.billing, ledger.c.hourly_rate, _day)
)


def stored_days(more: Days, before: str = "{}") -> str:
    """Return the days of a month as they are stored, with these sums added."""
    days = _read(before)
    for day, spent in more.items():
        days[day] = days.get(day, Sum()) + spent
    return json.dumps({str(day): [str(days[day].running), str(days[day].paid)] for day in sorted(days)})


def _read(stored: str) -> dict[int, Sum]:
    return {int(day): Sum(*map(Decimal, sums)) for day, sums in json.loads(stored).items()}


def open_days(connection: Connection, tenant: TenantId, since: datetime, end: datetime) -> Mapping[datetime, Sum]:
    """Return the sums of the tenant's open segments by the starts of days, from ``since`` up to ``end``."""
    found: dict[datetime, Sum] = {}
    if since >= end:
        return found
    spans = [(day, _exact_seconds(until)) for day, _, until in days_between(since, end)]
    for row in connection.execute(_OPEN_BY_DAY, {"tenant": tenant, "since": since, "end": end}):
        began = _exact(row.seconds, row.microseconds)
        first = UNIX_EPOCH + int(row.day) * DAY
        for day, until in spans:
            if day >= first:
                start = began if day == first else row.number * _exact_seconds(day)
                seconds = row.number * until - start
                found[day] = found.get(day, Sum()) + _sum_of_time(row.billing, row.hourly_rate, seconds)
    return found


def _exact_seconds(at: datetime) -> Decimal:
    """Return the seconds from 1970 to a time."""
    return _exact((at - UNIX_EPOCH) // SECOND, at.microsecond)
