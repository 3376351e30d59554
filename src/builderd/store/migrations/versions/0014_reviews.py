"""Reviews, and what people accept of them."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("versions", sa.Column("review_key", sa.Text()))
    op.add_column("versions", sa.Column("review_until", TIME))
    op.create_index("ix_versions_review_key", "versions", ["review_key"])
    op.create_table(
        "reviews",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("reviewed_at", TIME, nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_reviews_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", "key", name="pk_reviews"),
    )
    op.create_index("ix_reviews_reviewed_at", "reviews", ["reviewed_at"])
    op.create_table(
        "acceptances",
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("accepted_by", sa.Text(), nullable=False),
        sa.Column("accepted_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.ForeignKeyConstraint(["builder_id"], ["builders.id"], name="fk_acceptances_builder_id"),
        sa.PrimaryKeyConstraint("builder_id", "fingerprint", name="pk_acceptances"),
    )
