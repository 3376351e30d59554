"""Grants to log in to a builder by SSH."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "ssh_grants",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("revoked_at", TIME),
        sa.Column("last_used_at", TIME),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_ssh_grants_tenant_id"),
        sa.ForeignKeyConstraint(["builder_id"], ["builders.id"], name="fk_ssh_grants_builder_id"),
        sa.PrimaryKeyConstraint("id", name="pk_ssh_grants"),
        sa.UniqueConstraint("secret_hash", name="uq_ssh_grants_secret_hash"),
    )
    op.create_index("ix_ssh_grants_builder_id", "ssh_grants", ["builder_id"])
