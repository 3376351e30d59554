"""Certificates of the previews' domain and all hosts in it."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "wildcard_certificates",
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("next_try_at", TIME, nullable=False),
        sa.Column("certificate", sa.LargeBinary()),
        sa.Column("fingerprint", sa.Text()),
        sa.Column("ordered_at", TIME),
        sa.Column("expires_at", TIME),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("domain", name="pk_wildcard_certificates"),
    )
