"""The build command of a version, and the layer with what it made."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.add_column("versions", sa.Column("build", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.add_column("versions", sa.Column("build_key", sa.Text()))
