"""Number of a tenant's live builders, which lists name."""

import sqlalchemy as sa
from alembic import op

revision = "0043"
down_revision = "0042"


def upgrade() -> None:
    op.add_column("tenants", sa.Column("live_builders", sa.Integer(), nullable=False, server_default=sa.text("0")))
    tenants = sa.table("tenants", sa.column("id"), sa.column("live_builders"))
    builders = sa.table("builders", sa.column("tenant_id"), sa.column("desired"))
    counted = (
        sa.select(sa.func.count())
        .select_from(builders)
        .where(builders.c.tenant_id == tenants.c.id, builders.c.desired != "deleted")
        .scalar_subquery()
    )
    op.execute(sa.update(tenants).values(live_builders=counted))
