"""Whether a version's packages may run the scripts that they bring for their installation."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("versions", sa.Column("install_scripts", sa.Boolean(), nullable=False, server_default=sa.false()))
