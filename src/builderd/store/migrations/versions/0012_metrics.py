"""Metrics of builders, in steps."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

DOUBLES = ("seconds", "cpu_seconds", "memory_byte_seconds")
COUNTS = (
    "memory_most_bytes",
    "disk_most_bytes",
    "network_in_bytes",
    "network_out_bytes",
    "requests",
    "answers_2xx",
    "answers_3xx",
    "answers_4xx",
    "answers_5xx",
)


def upgrade() -> None:
    op.create_table(
        "metrics",
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("start", sa.DateTime(timezone=True), nullable=False),
        *(sa.Column(name, sa.Double(), nullable=False) for name in DOUBLES),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS),
        sa.PrimaryKeyConstraint("builder_id", "start", name="pk_metrics"),
    )
    op.create_index("ix_metrics_start", "metrics", ["start"])
