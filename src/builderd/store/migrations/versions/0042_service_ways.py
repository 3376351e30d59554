"""Services of a cluster: where the one that works takes what the others pass on, and what keeps one from doing so."""

import sqlalchemy as sa
from alembic import op

revision = "0042"
down_revision = "0041"


def upgrade() -> None:
    op.add_column("services", sa.Column("address", sa.Text()))
    op.add_column("services", sa.Column("way", sa.Text()))
