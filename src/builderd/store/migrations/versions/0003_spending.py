"""Spending: caps of tenants and builders, and what the ended segments of each month come to."""

from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal

import sqlalchemy as sa
from alembic import op

from builderd.domain.months import months_between

revision = "0003"
down_revision = "0002"

TIME = sa.DateTime(timezone=True)
AMOUNT = sa.Text().with_variant(sa.Numeric(), "postgresql")


def upgrade() -> None:
    for table in ("tenants", "builders"):
        op.add_column(table, sa.Column("spending_cap", AMOUNT))
        op.add_column(table, sa.Column("cap_warned_at", TIME))
    op.add_column("tenants", sa.Column("spending_due_at", TIME))
    op.create_index("ix_tenants_spending_due_at", "tenants", ["spending_due_at"])
    months = op.create_table(
        "ledger_months",
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("month", TIME, nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("running", AMOUNT, nullable=False),
        sa.Column("paid", AMOUNT, nullable=False),
        sa.ForeignKeyConstraint(["builder_id"], ["builders.id"], name="fk_ledger_months_builder_id"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_ledger_months_tenant_id"),
        sa.PrimaryKeyConstraint("builder_id", "month", name="pk_ledger_months"),
    )
    op.create_index("ix_ledger_months_tenant_id_month", "ledger_months", ["tenant_id", "month"])
    op.bulk_insert(months, _sums())


def _sums() -> list[dict[str, object]]:
    ledger = sa.table(
        "ledger",
        *(sa.column(name, sa.Text()) for name in ("tenant_id", "builder_id", "billing")),
        *(sa.column(name, TIME) for name in ("started_at", "ended_at")),
        sa.column("hourly_rate", AMOUNT),
    )
    sums: dict[tuple[str, str, datetime], list[Decimal]] = defaultdict(lambda: [Decimal(0), Decimal(0)])
    for row in op.get_bind().execute(sa.select(ledger).where(ledger.c.ended_at.is_not(None))).mappings():
        for month, start, end in months_between(_utc(row["started_at"]), _utc(row["ended_at"])):
            seconds = _seconds(start, end)
            found = sums[row["tenant_id"], row["builder_id"], month]
            found[0] += seconds if row["billing"] == "running" else 0
            found[1] += seconds * Decimal(row["hourly_rate"])
    exact = op.get_bind().dialect.name == "postgresql"
    return [
        {
            "tenant_id": tenant,
            "builder_id": builder,
            "month": month,
            "running": running if exact else str(running),
            "paid": paid if exact else str(paid),
        }
        for (tenant, builder, month), (running, paid) in sums.items()
    ]


def _utc(stored: datetime) -> datetime:
    """SQLite has no zones: what it holds was put in as UTC."""
    return stored.replace(tzinfo=UTC) if stored.tzinfo is None else stored.astimezone(UTC)


def _seconds(start: datetime, end: datetime) -> Decimal:
    span = end - start
    return Decimal(span.days * 86400 + span.seconds) + Decimal(span.microseconds) / 1_000_000
