"""Links to private previews."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "preview_links",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.Text(), nullable=False),
        sa.Column("port", sa.Integer()),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_preview_links_tenant_id"),
        sa.ForeignKeyConstraint(["builder_id"], ["builders.id"], name="fk_preview_links_builder_id"),
        sa.PrimaryKeyConstraint("id", name="pk_preview_links"),
        sa.UniqueConstraint("secret_hash", name="uq_preview_links_secret_hash"),
    )
    op.create_index("ix_preview_links_builder_id", "preview_links", ["builder_id"])
