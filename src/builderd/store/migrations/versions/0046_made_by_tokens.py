"""The API token that made a thing, with which it ends. Things from before are of no token."""

import sqlalchemy as sa
from alembic import op

revision = "0046"
down_revision = "0045"


def upgrade() -> None:
    op.add_column("tokens", sa.Column("made_by", sa.Text()))
    for table in ("ssh_grants", "preview_links", "webhooks", "uploads"):
        op.add_column(table, sa.Column("token_id", sa.Text()))
    op.add_column("webhooks", sa.Column("expires_at", sa.DateTime(timezone=True)))
