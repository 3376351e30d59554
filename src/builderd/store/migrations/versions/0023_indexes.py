"""Indexes and sums that keep the cost of a call from growing with the number of stored builders."""

from collections import defaultdict
from decimal import Decimal, localcontext

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"

LIVE, OPEN = "desired <> 'deleted'", "ended_at IS NULL"
ACTIVE = "desired = 'running' OR candidate IS NOT NULL"


def upgrade() -> None:
    decimal = sa.Text().with_variant(sa.Numeric(), "postgresql")
    op.add_column("builders", sa.Column("reserved_disk", sa.Double(), nullable=False, server_default=sa.text("0")))
    op.execute(
        "UPDATE builders SET reserved_disk = coalesce((SELECT disk FROM versions "
        "WHERE versions.builder_id = builders.id AND versions.number = builders.version), 0)"
    )
    _index("ix_builders_live", "builders", ["tenant_id", "status", "desired", "reserved_disk"], LIVE)
    _index("ix_builders_active", "builders", ["tenant_id"], ACTIVE)
    _index("ix_builders_backed_up", "builders", ["id"], "backup_interval_hours > 0")
    _index("ix_builders_capped", "builders", ["tenant_id"], "spending_cap IS NOT NULL")
    op.create_index("ix_builders_status", "builders", ["status"])
    op.create_index("ix_builders_tenant_id_updated_at", "builders", ["tenant_id", "updated_at"])
    op.create_index("ix_ledger_tenant_id_started_at", "ledger", ["tenant_id", "started_at"])
    _index("ix_ledger_open", "ledger", ["tenant_id", "billing", "hourly_rate", "started_at", "ended_at"], OPEN)
    op.create_table(
        "tenant_months",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("month", sa.DateTime(timezone=True), nullable=False),
        sa.Column("running", decimal, nullable=False),
        sa.Column("paid", decimal, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "month", name="pk_tenant_months"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_tenant_months_tenant_id"),
    )
    _sum_months()


def _sum_months() -> None:
    """Sum the months of a tenant's builders; in Python, since SQLite has no exact sum of decimals."""
    bind = op.get_bind()
    names = ["tenant_id", "month", "running", "paid"]
    source, target = (sa.table(name, *map(sa.column, names)) for name in ("ledger_months", "tenant_months"))
    sums: defaultdict[tuple[str, object], list[Decimal]] = defaultdict(lambda: [Decimal(0), Decimal(0)])
    with localcontext(prec=60):
        for tenant, month, *amounts in bind.execute(sa.select(*(source.c[name] for name in names))):
            total = sums[tenant, month]
            total[:] = [before + Decimal(amount) for before, amount in zip(total, amounts, strict=True)]
    stored = Decimal if bind.dialect.name == "postgresql" else str
    rows = [(tenant, month, *map(stored, total)) for (tenant, month), total in sums.items()]
    if rows:
        bind.execute(sa.insert(target), [dict(zip(names, row, strict=True)) for row in rows])


def _index(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
