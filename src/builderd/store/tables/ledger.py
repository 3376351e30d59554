"""Tables of the ledger."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Table, Text, text

from builderd.domain.prices import Billing
from builderd.store.tables.base import COUNTER, builder_columns, index_where, metadata, unique_where
from builderd.store.types import ExactDecimal, UtcDateTime, enum_column

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


# Builds that run, which the next service charges if this one is killed. Few at a time.
open_builds = Table(
    "open_builds",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("started_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
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
