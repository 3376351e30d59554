"""Idleness: builders that are asleep, why a builder was stopped, and leases."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

TIME = sa.DateTime(timezone=True)
WORD = sa.String(32)


def upgrade() -> None:
    op.add_column("builders", sa.Column("asleep_since", TIME))
    op.add_column("builders", sa.Column("stop_kind", WORD))
    op.execute("UPDATE builders SET stop_kind = 'person' WHERE desired = 'stopped' AND status <> 'failed'")
    op.create_table(
        "leases",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["builder_id"], ["builders.id"], name="fk_leases_builder_id"),
        sa.PrimaryKeyConstraint("id", name="pk_leases"),
    )
    op.create_index("ix_leases_builder_id", "leases", ["builder_id"])
