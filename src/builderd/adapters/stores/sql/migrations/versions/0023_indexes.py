"""Indexes and sums that keep the cost of a call from growing with the number of stored builders."""

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
    bind = op.get_bind()
    exact_sum = sa.func.sum if bind.dialect.name == "postgresql" else sa.func.exact_sum
    names = ["tenant_id", "month", "running", "paid"]
    source, target = (sa.table(name, *map(sa.column, names)) for name in ("ledger_months", "tenant_months"))
    key = (source.c.tenant_id, source.c.month)
    sums = sa.select(*key, exact_sum(source.c.running), exact_sum(source.c.paid)).group_by(*key)
    bind.execute(sa.insert(target).from_select(names, sums))


def _index(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
