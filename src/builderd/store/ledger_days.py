"""Sums of a tenant's days: of closed segments from the row of their month, of open ones by one statement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from sqlalchemy import BigInteger, Connection, bindparam, case, func, literal, select, text

from builderd.domain.ids import TenantId
from builderd.domain.prices import DAY, Billing, Sum, days_between
from builderd.store.tables import OPEN, ledger
from builderd.store.types import EpochSeconds, Microseconds

#: Sums of the days of one month, by day of the month.
Days = Mapping[int, Sum]

UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECONDS = 24 * 3600

_since, _end = (bindparam(name, type_=ledger.c.started_at.type) for name in ("since", "end"))
# When each open segment began, not before the first day nor after the end: few groups, whatever their number.
_began = case((ledger.c.started_at < _since, _since), (ledger.c.started_at > _end, _end), else_=ledger.c.started_at)
_day = EpochSeconds(_began) // literal(SECONDS, BigInteger, literal_execute=True)
_OPEN_BY_DAY = (
    select(
        ledger.c.billing,
        ledger.c.hourly_rate,
        _day.label("day"),
        func.count().label("number"),
        func.sum(EpochSeconds(_began)).label("seconds"),
        func.sum(Microseconds(_began)).label("microseconds"),
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


def days_of(stored: str, month: datetime) -> Mapping[datetime, Sum]:
    """Return the stored sums by the starts of their days."""
    return {month.replace(day=day): spent for day, spent in _read(stored).items()}


def _read(stored: str) -> dict[int, Sum]:
    return {int(day): Sum(*map(Decimal, sums)) for day, sums in json.loads(stored).items()}


def open_days(connection: Connection, tenant: TenantId, since: datetime, end: datetime) -> Mapping[datetime, Sum]:
    """Return the sums of the tenant's open segments by the starts of days, from ``since`` up to ``end``."""
    found: dict[datetime, Sum] = {}
    if since >= end:
        return found
    spans = [(day, _exact(until)) for day, _, until in days_between(since, end)]
    for row in connection.execute(_OPEN_BY_DAY, {"tenant": tenant, "since": since, "end": end}):
        began = Decimal(int(row.seconds)) + Decimal(int(row.microseconds)) / 1_000_000
        first = UNIX_EPOCH + int(row.day) * DAY
        for day, until in spans:
            if day >= first:
                start = began if day == first else row.number * _exact(day)
                seconds = row.number * until - start
                running = seconds if row.billing is Billing.RUNNING else Decimal(0)
                found[day] = found.get(day, Sum()) + Sum(running, seconds * row.hourly_rate)
    return found


def _exact(at: datetime) -> Decimal:
    """Return the seconds from 1970 to a time."""
    span = at - UNIX_EPOCH
    return Decimal(span // timedelta(seconds=1)) + Decimal(span.microseconds) / 1_000_000
