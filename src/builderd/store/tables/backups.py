"""Tables of backups, restores and the keys of backup repositories."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, Table, Text

from builderd.domain.backups import BackupKind, BackupStatus, RestoreKind, RestoreStatus
from builderd.store.tables.base import builder_columns, document, index_where, metadata, version_key
from builderd.store.types import ForeignText, UtcDateTime, enum_column

#: A backup that is to be taken or saved, or has a copy of the disk to delete.
UNFINISHED = "status IN ('planned', 'held') OR copy IS NOT NULL"
#: A backup whose last drill found a fault.
DAMAGED = "fault <> ''"


backups = Table(
    "backups",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("builder_name", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("kind", enum_column(BackupKind), nullable=False),
    Column("status", enum_column(BackupStatus), nullable=False, index=True),
    Column("actor", ForeignText, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("copy", Text),
    Column("finished_at", UtcDateTime),
    Column("snapshot", Text),
    Column("digest", Text),
    Column("files", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("added_bytes", BigInteger, nullable=False),
    Column("error", ForeignText, nullable=False),
    Column("expires_at", UtcDateTime, index=True),
    Column("retry_at", UtcDateTime),
    Column("drilled_at", UtcDateTime),
    Column("verified_at", UtcDateTime),
    Column("fault", ForeignText, nullable=False),
    Column("hindrance", document()),
    version_key("backups"),
    Index("ix_backups_builder_id_created_at", "builder_id", "created_at"),
    Index("ix_backups_tenant_id_created_at", "tenant_id", "created_at"),
    index_where("ix_backups_unfinished", UNFINISHED, "owner"),
    index_where("ix_backups_damaged", DAMAGED, "id"),
)


restores = Table(
    "restores",
    metadata,
    Column("id", Text, primary_key=True),
    *builder_columns(),
    Column("backup_id", Text, ForeignKey("backups.id"), nullable=False, index=True),
    Column("kind", enum_column(RestoreKind), nullable=False),
    Column("status", enum_column(RestoreStatus), nullable=False, index=True),
    Column("actor", ForeignText, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("disk", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("safety", Text),
    Column("made", Text),
    Column("number", Integer),
    Column("finished_at", UtcDateTime),
    Column("error", ForeignText, nullable=False),
    Column("hindrance", document()),
)


backup_keys = Table(
    "backup_keys",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("checked_at", UtcDateTime, nullable=False),
    Column("pruned_at", UtcDateTime, nullable=False),
    Column("forgotten_at", UtcDateTime),
    Column("fault", ForeignText, nullable=False),
)
