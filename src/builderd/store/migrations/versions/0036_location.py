"""The member of the cluster on which a builder was last started."""

import sqlalchemy as sa
from alembic import op

revision = "0036"
down_revision = "0035"

#: Builders that are not deleted and live on a member.
_PLACED = sa.text("desired <> 'deleted' AND location <> ''")


def upgrade() -> None:
    op.add_column("builders", sa.Column("location", sa.Text(), nullable=False, server_default=""))
    op.create_index("ix_builders_location", "builders", ["location"], postgresql_where=_PLACED, sqlite_where=_PLACED)
