"""Whether a builder's disk was made, so that a missing one is lost; and builds that run, which a crash may cut."""

import sqlalchemy as sa
from alembic import op

revision = "0037"
down_revision = "0036"


def upgrade() -> None:
    op.add_column("builders", sa.Column("disk_is_made", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute(
        "UPDATE builders SET disk_is_made = TRUE WHERE disk_has_data"
        " OR id IN (SELECT builder_id FROM ledger WHERE ended_at IS NULL)"
        " OR id IN (SELECT builder_id FROM versions WHERE status IN ('deployed', 'dropped'))"
    )
    op.create_table(
        "open_builds",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_open_builds"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_open_builds_tenant_id"),
        sa.ForeignKeyConstraint(["builder_id"], ["builders.id"], name="fk_open_builds_builder_id"),
    )
