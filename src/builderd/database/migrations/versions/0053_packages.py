"""Versions name the Debian packages that they need."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0053", "0052"


def upgrade() -> None:
    op.add_column("versions", sa.Column("packages", sa.JSON))
