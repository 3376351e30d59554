"""The standard input of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.add_column("versions", sa.Column("stdin", sa.Text(), nullable=False, server_default=sa.text("''")))
