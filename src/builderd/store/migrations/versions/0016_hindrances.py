"""What hindered a backup or a restore, as whoever waits for it is told."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.add_column("backups", sa.Column("hindrance", sa.JSON()))
    op.add_column("restores", sa.Column("hindrance", sa.JSON()))
