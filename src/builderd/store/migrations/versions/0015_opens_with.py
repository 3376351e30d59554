"""The candidate with which a private preview becomes public."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("builders", sa.Column("opens_with", sa.Integer()))
