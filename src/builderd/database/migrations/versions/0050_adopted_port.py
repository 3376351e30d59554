"""Record where an app listens that was given no port. A port other than the default was given before."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0050", "0049"


def upgrade() -> None:
    op.add_column("versions", sa.Column("adopted_port", sa.Integer))
    op.add_column("versions", sa.Column("fixed_port", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("versions", sa.Column("known_port", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.execute("UPDATE versions SET fixed_port = TRUE WHERE port <> 8000")
