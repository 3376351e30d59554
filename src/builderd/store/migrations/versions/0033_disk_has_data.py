"""Builders that never were up, and whose disk holds more than the code: a restored backup, or files from a caller."""

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"


def upgrade() -> None:
    op.add_column("builders", sa.Column("disk_has_data", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute(
        "UPDATE builders SET disk_has_data = TRUE WHERE id IN (SELECT made FROM restores WHERE made IS NOT NULL)"
    )
