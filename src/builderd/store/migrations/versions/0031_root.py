"""The folder of a version's code in which its commands run."""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"


def upgrade() -> None:
    op.add_column("versions", sa.Column("root", sa.Text(), nullable=False, server_default=sa.text("''")))
