"""The lease on the database, and the instance where a builder lives."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "database_lease",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("host_name", sa.Text(), nullable=False),
        sa.Column("data_dir", sa.Text(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("renewed_at", TIME, nullable=False),
        sa.Column("released", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_database_lease"),
        sa.CheckConstraint("id = 1", name="ck_database_lease_only"),
    )
    op.add_column("builders", sa.Column("member", sa.Text(), nullable=False, server_default=sa.text("''")))
