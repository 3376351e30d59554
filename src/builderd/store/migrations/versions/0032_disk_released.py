"""When the disk of a failed builder was given back."""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    op.add_column("builders", sa.Column("disk_released_at", sa.DateTime(timezone=True)))
