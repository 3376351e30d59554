"""Bundles in the database, for services that share no folder."""

import sqlalchemy as sa
from alembic import op

revision = "0040"
down_revision = "0038"


def upgrade() -> None:
    op.create_table(
        "stored_bundles",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name="pk_stored_bundles"),
    )
    op.create_table(
        "bundle_chunks",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("hash", "number", name="pk_bundle_chunks"),
    )
