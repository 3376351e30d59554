"""Candidates: a version that is deployed beside the current one, disks with names of their own, and trials."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

WORD = sa.String(32)
OPEN = sa.text("end_cause IS NULL")


def upgrade() -> None:
    op.add_column("builders", sa.Column("disk", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.add_column("builders", sa.Column("candidate", sa.Integer()))
    op.add_column("builders", sa.Column("candidate_disk", sa.Text()))
    op.add_column("builders", sa.Column("handover", WORD))
    op.add_column("builders", sa.Column("spare_disks", sa.JSON()))
    op.add_column("versions", sa.Column("failure_code", sa.Text()))
    op.add_column("versions", sa.Column("rolled_back_to", sa.Integer()))
    op.add_column("versions", sa.Column("fresh_since", sa.Integer()))
    op.add_column("idempotency", sa.Column("version", sa.Integer()))
    op.add_column("sandboxes", sa.Column("disk", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.add_column("sandboxes", sa.Column("trial", sa.Boolean(), nullable=False, server_default=sa.false()))
    # Until now a disk went by its builder's id.
    op.execute("UPDATE builders SET disk = id")
    op.execute("UPDATE sandboxes SET disk = builder_id")
    op.drop_index("uq_sandboxes_open", "sandboxes")
    op.create_index(
        "uq_sandboxes_open", "sandboxes", ["builder_id", "trial"], unique=True, sqlite_where=OPEN, postgresql_where=OPEN
    )
