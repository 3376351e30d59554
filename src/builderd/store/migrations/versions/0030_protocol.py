"""The protocol that the preview speaks with the app of a version."""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"


def upgrade() -> None:
    op.add_column("versions", sa.Column("protocol", sa.String(32), nullable=False, server_default=sa.text("'http'")))
