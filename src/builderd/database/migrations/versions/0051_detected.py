"""Keep what was detected in a version's code."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0051", "0050"


def upgrade() -> None:
    op.add_column("versions", sa.Column("detected", sa.JSON))
