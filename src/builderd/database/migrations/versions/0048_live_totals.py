"""Drop the numbers of live builders and their disk in tenants' rows: sums over an index of builders replaced them."""

from alembic import op

revision, down_revision = "0048", "0047"


def upgrade() -> None:
    for column in ("live_builders", "live_disk"):
        op.drop_column("tenants", column)
