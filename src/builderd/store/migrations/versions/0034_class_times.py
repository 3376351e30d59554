"""Responses of apps by class of status and time, in the metrics."""

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"

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
    op.create_table(
        "class_times",
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("start", sa.DateTime(timezone=True), nullable=False),
        sa.Column("class", sa.Text(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS),
        sa.PrimaryKeyConstraint("builder_id", "start", "class", name="pk_class_times"),
    )
    op.create_index("ix_class_times_start", "class_times", ["start"])
