"""The table of versions."""

from __future__ import annotations

from sqlalchemy import Boolean, CheckConstraint, Column, Double, ForeignKey, Integer, Table, Text, false, text

from builderd.domain.versions import Isolation, Protocol, VersionStatus
from builderd.store.tables.base import document, metadata
from builderd.store.types import ForeignText, UtcDateTime, enum_column

versions = Table(
    "versions",
    metadata,
    Column("builder_id", Text, ForeignKey("builders.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("bundle_hash", Text, nullable=False, index=True),
    Column("entrypoint", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("env", document(), nullable=False),
    Column("cpu", Double, nullable=False),
    Column("memory", Double, nullable=False),
    Column("disk", Double, nullable=False),
    Column("isolation", enum_column(Isolation), nullable=False),
    Column("credentials", document(), nullable=False),
    Column("skip_review", Boolean, nullable=False),
    Column("skip_qa", Boolean, nullable=False),
    Column("require_qa", Boolean, nullable=False),
    Column("created_by", ForeignText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("status", enum_column(VersionStatus), nullable=False),
    Column("status_reason", ForeignText, nullable=False),
    Column("layer_key", Text, index=True),
    Column("review_passed", Boolean),
    Column("qa_passed", Boolean),
    Column("failure_code", Text),
    Column("rolled_back_to", Integer),
    Column("fresh_since", Integer),
    Column("install_scripts", Boolean, nullable=False, server_default=false()),
    Column("review_key", Text, index=True),
    Column("review_until", UtcDateTime),
    Column("build", Text, nullable=False, server_default=text("''")),
    Column("build_key", Text, index=True),
    Column("stdin", Text, nullable=False, server_default=text("''")),
    Column("start_timeout", Integer, nullable=False, server_default=text("0")),
    Column("env_file", Text, nullable=False, server_default=text("''")),
    Column("env_file_values", document()),
    Column("release", Text, nullable=False, server_default=text("''")),
    Column("released", Boolean, nullable=False, server_default=false()),
    Column("protocol", enum_column(Protocol), nullable=False, server_default=text("'http'")),
    Column("root", Text, nullable=False, server_default=text("''")),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
    CheckConstraint("cpu > 0 AND memory > 0 AND disk > 0", name="resources"),
)
