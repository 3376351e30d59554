"""Sums of a tenant's days, within the row of their month."""

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext

import sqlalchemy as sa
from alembic import op

revision = "0038"
down_revision = "0037"

DAY = timedelta(days=1)
TIME = sa.DateTime(timezone=True)
#: Running and paid.
Sums = list[Decimal]


def upgrade() -> None:
    op.add_column("tenant_months", sa.Column("days", sa.Text(), nullable=False, server_default=sa.text("'{}'")))
    months = sa.table("tenant_months", sa.column("tenant_id"), sa.column("month", TIME), sa.column("days"))
    with localcontext(prec=60):
        found = _sum_days()
    statement = (
        sa.update(months)
        .where(months.c.tenant_id == sa.bindparam("tenant"), months.c.month == sa.bindparam("of_month", type_=TIME))
        .values(days=sa.bindparam("sums"))
    )
    rows = [
        {"tenant": tenant, "of_month": month, "sums": json.dumps({str(day): [*map(str, days[day])] for day in days})}
        for (tenant, month), days in found.items()
    ]
    if rows:
        op.get_bind().execute(statement, rows)


def _sum_days() -> dict[tuple[str, datetime], dict[int, Sums]]:
    """Sum closed segments by tenant, month and day; in Python, since SQLite has no exact sum of decimals."""
    names = ("tenant_id", "billing", "hourly_rate")
    ledger = sa.table("ledger", *map(sa.column, names), sa.column("started_at", TIME), sa.column("ended_at", TIME))
    statement = sa.select(*(ledger.c[name] for name in (*names, "started_at", "ended_at"))).where(
        ledger.c.ended_at.is_not(None)
    )
    found: defaultdict[tuple[str, datetime], dict[int, Sums]] = defaultdict(dict)
    for tenant, billing, rate, start, end in op.get_bind().execute(statement.execution_options(yield_per=1000)):
        for day, seconds in _days(_utc(start), _utc(end)):
            sums = found[tenant, day.replace(day=1)].setdefault(day.day, [Decimal(0), Decimal(0)])
            sums[0] += seconds if billing == "running" else 0
            sums[1] += seconds * Decimal(rate)
    return found


def _days(start: datetime, end: datetime) -> Iterator[tuple[datetime, Decimal]]:
    while start < end:
        day = start.replace(hour=0, minute=0, second=0, microsecond=0)
        until = min(end, day + DAY)
        span = until - start
        yield day, Decimal(span.days * 86400 + span.seconds) + Decimal(span.microseconds) / 1_000_000
        start = until


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
