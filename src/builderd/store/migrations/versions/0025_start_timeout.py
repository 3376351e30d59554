"""Seconds until the app of a version must listen."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    op.add_column("versions", sa.Column("start_timeout", sa.Integer(), nullable=False, server_default=sa.text("0")))
