"""Reserved disk of a tenant's live builders, in billionths of a GB, which a create needs to know."""

import sqlalchemy as sa
from alembic import op

revision = "0045"
down_revision = "0044"


def upgrade() -> None:
    op.add_column("tenants", sa.Column("live_disk", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    tenants = sa.table("tenants", sa.column("id"), sa.column("live_disk"))
    builders = sa.table(
        "builders", sa.column("tenant_id"), sa.column("desired"), sa.column("reserved_disk", sa.Double())
    )
    units = sa.cast(sa.func.round(builders.c.reserved_disk * 1e9), sa.BigInteger())
    summed = (
        sa.select(sa.cast(sa.func.coalesce(sa.func.sum(units), 0), sa.BigInteger()))
        .where(builders.c.tenant_id == tenants.c.id, builders.c.desired != "deleted")
        .scalar_subquery()
    )
    op.execute(sa.update(tenants).values(live_disk=summed))
