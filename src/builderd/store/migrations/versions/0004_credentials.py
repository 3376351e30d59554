"""Credentials."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "credentials",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("variables", sa.JSON(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("last_used_at", TIME),
        sa.Column("last_used_by", sa.Text()),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_credentials_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", "name", name="pk_credentials"),
    )
