"""Add further processes of versions, their scale, and whose sandbox is which."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0052", "0051"
OPEN = sa.text("end_cause IS NULL")


def upgrade() -> None:
    op.add_column("versions", sa.Column("processes", sa.JSON))
    op.add_column("builders", sa.Column("scale", sa.JSON))
    op.add_column("builders", sa.Column("further", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.add_column("sandboxes", sa.Column("process", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("sandboxes", sa.Column("number", sa.Integer, nullable=False, server_default=sa.text("1")))
    op.add_column("sandboxes", sa.Column("replaced", sa.Boolean, nullable=False, server_default=sa.false()))
    op.drop_index("uq_sandboxes_open", "sandboxes")
    columns = ["builder_id", "trial", "process", "number"]
    op.create_index("uq_sandboxes_open", "sandboxes", columns, unique=True, sqlite_where=OPEN, postgresql_where=OPEN)
