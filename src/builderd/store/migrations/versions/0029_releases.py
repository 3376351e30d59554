"""The release command of a version, whether it has succeeded, and the sandboxes that run it."""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    op.add_column("versions", sa.Column("release", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.add_column("versions", sa.Column("released", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("sandboxes", sa.Column("release", sa.Boolean(), nullable=False, server_default=sa.false()))
