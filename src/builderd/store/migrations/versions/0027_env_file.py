"""File of a version that holds environment variables, and its variables."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    op.add_column("versions", sa.Column("env_file", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.add_column("versions", sa.Column("env_file_values", sa.JSON()))
