"""Custom domains, and accounts at certificate authorities."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"

TIME = sa.DateTime(timezone=True)
NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
LIVE = sa.text("released_at IS NULL")
HELD = sa.text("proven_at IS NOT NULL AND released_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "domains",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("host", NAME, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("next_try_at", TIME),
        sa.Column("not_before", TIME),
        sa.Column("proven_at", TIME),
        sa.Column("released_at", TIME),
        sa.Column("ordered_at", TIME),
        sa.Column("certificate", sa.LargeBinary()),
        sa.Column("fingerprint", sa.Text()),
        sa.Column("expires_at", TIME),
        sa.Column("warned_days", sa.Integer()),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_domains_tenant_id"),
        sa.ForeignKeyConstraint(["builder_id"], ["builders.id"], name="fk_domains_builder_id"),
        sa.PrimaryKeyConstraint("id", name="pk_domains"),
    )
    op.create_index(
        "uq_domains_claim", "domains", ["tenant_id", "host"], unique=True, sqlite_where=LIVE, postgresql_where=LIVE
    )
    op.create_index("uq_domains_held", "domains", ["host"], unique=True, sqlite_where=HELD, postgresql_where=HELD)
    op.create_index("ix_domains_builder_id", "domains", ["builder_id"])
    op.create_index("ix_domains_host", "domains", ["host"])
    op.create_index("ix_domains_next_try_at", "domains", ["next_try_at"])
    op.create_table(
        "acme_accounts",
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("directory", name="pk_acme_accounts"),
    )
