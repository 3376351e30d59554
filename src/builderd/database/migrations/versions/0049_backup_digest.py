"""Drop the digest of a backup's manifest: restic verifies what it restores."""

from alembic import op

revision, down_revision = "0049", "0048"


def upgrade() -> None:
    op.drop_column("backups", "digest")
