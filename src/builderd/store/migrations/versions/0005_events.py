"""Events may concern a tenant as a whole, and are listed by tenant."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # SQLite builds the table anew: its ids must go on counting up over what is removed.
    with op.batch_alter_table("events", table_kwargs={"sqlite_autoincrement": True}) as table:
        table.alter_column("builder_id", existing_type=sa.Text(), nullable=True)
    op.create_index("ix_events_tenant_id_id", "events", ["tenant_id", "id"])
