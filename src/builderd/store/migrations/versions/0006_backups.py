"""Backups, restores, and the keys of the repositories."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

TIME = sa.DateTime(timezone=True)
WORD = sa.String(32)


def upgrade() -> None:
    _backups()
    _restores()
    op.create_table(
        "backup_keys",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("checked_at", TIME, nullable=False),
        sa.Column("pruned_at", TIME, nullable=False),
        sa.Column("forgotten_at", TIME),
        sa.Column("fault", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_backup_keys_tenant_id"),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_backup_keys"),
    )


def _backups() -> None:
    op.create_table(
        "backups",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("builder_name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("status", WORD, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("copy", sa.Text()),
        sa.Column("finished_at", TIME),
        sa.Column("snapshot", sa.Text()),
        sa.Column("digest", sa.Text()),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("added_bytes", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("retry_at", TIME),
        sa.Column("drilled_at", TIME),
        sa.Column("verified_at", TIME),
        sa.Column("fault", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_backups_tenant_id"),
        sa.ForeignKeyConstraint(["builder_id"], ["builders.id"], name="fk_backups_builder_id"),
        sa.ForeignKeyConstraint(
            ["builder_id", "version"], ["versions.builder_id", "versions.number"], name="fk_backups_version"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_backups"),
    )
    op.create_index("ix_backups_status", "backups", ["status"])
    op.create_index("ix_backups_expires_at", "backups", ["expires_at"])
    op.create_index("ix_backups_builder_id_created_at", "backups", ["builder_id", "created_at"])
    op.create_index("ix_backups_tenant_id_created_at", "backups", ["tenant_id", "created_at"])


def _restores() -> None:
    op.create_table(
        "restores",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("builder_id", sa.Text(), nullable=False),
        sa.Column("backup_id", sa.Text(), nullable=False),
        sa.Column("kind", WORD, nullable=False),
        sa.Column("status", WORD, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("disk", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("safety", sa.Text()),
        sa.Column("made", sa.Text()),
        sa.Column("number", sa.Integer()),
        sa.Column("finished_at", TIME),
        sa.Column("error", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_restores_tenant_id"),
        sa.ForeignKeyConstraint(["builder_id"], ["builders.id"], name="fk_restores_builder_id"),
        sa.ForeignKeyConstraint(["backup_id"], ["backups.id"], name="fk_restores_backup_id"),
        sa.PrimaryKeyConstraint("id", name="pk_restores"),
    )
    op.create_index("ix_restores_backup_id", "restores", ["backup_id"])
    op.create_index("ix_restores_status", "restores", ["status"])
