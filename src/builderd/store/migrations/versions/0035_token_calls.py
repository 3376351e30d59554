"""Calls of API tokens by hour."""

import sqlalchemy as sa
from alembic import op

revision = "0035"
down_revision = "0034"


def upgrade() -> None:
    op.add_column("tokens", sa.Column("calls", sa.JSON(none_as_null=True)))
