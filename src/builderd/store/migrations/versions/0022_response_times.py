"""Responses of apps by their time, in the metrics."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"

COUNTS = (
    "within_5_ms",
    "within_10_ms",
    "within_25_ms",
    "within_50_ms",
    "within_100_ms",
    "within_250_ms",
    "within_500_ms",
    "within_1000_ms",
    "within_2500_ms",
    "within_10000_ms",
    "slower",
)


def upgrade() -> None:
    for name in COUNTS:
        op.add_column("metrics", sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0")))
