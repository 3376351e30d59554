"""Times at which the backup schedule looks at a builder again, and indexes of backups with work and of layers."""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"

TIME = sa.DateTime(timezone=True)
WANTED = "backup_interval_hours > 0 AND desired <> 'deleted'"


def upgrade() -> None:
    op.add_column("builders", sa.Column("backup_check_at", TIME))
    op.add_column("builders", sa.Column("drill_base_at", TIME))
    # Looked at once, a few at a time; each then gets a time of its own.
    op.execute("UPDATE builders SET backup_check_at = created_at WHERE backup_interval_hours > 0")
    _index("ix_builders_backup_check_at", "builders", "backup_check_at", WANTED)
    _index("ix_builders_drill_base_at", "builders", "drill_base_at", WANTED)
    _index("ix_backups_unfinished", "backups", "owner", "status IN ('planned', 'held') OR copy IS NOT NULL")
    _index("ix_backups_damaged", "backups", "id", "fault <> ''")
    op.create_index("ix_versions_layer_key", "versions", ["layer_key"])
    op.create_index("ix_versions_build_key", "versions", ["build_key"])


def _index(name: str, table: str, column: str, condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, [column], sqlite_where=where, postgresql_where=where)
