"""Services of a cluster: the owner of the database, and those that stand by."""

import sqlalchemy as sa
from alembic import op

revision = "0041"
down_revision = "0040"


def upgrade() -> None:
    op.create_table(
        "services",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host_name", sa.Text(), nullable=False),
        sa.Column("data_dir", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("disks", sa.Text(), nullable=False),
        sa.Column("vault_key", sa.Text(), nullable=False),
        sa.Column("vault_key_file", sa.Text(), nullable=False),
        sa.Column("ssh_key", sa.Text(), nullable=False),
        sa.Column("ssh_key_file", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("known_in", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id", name="pk_services"),
    )
