"""Tables of QA reports, review reports and acceptances."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Integer, LargeBinary, Table, Text

from builderd.domain.qa import ReportStatus
from builderd.store.tables.base import document, metadata, version_key
from builderd.store.types import ForeignText, UtcDateTime, enum_column

qa_reports = Table(
    "qa_reports",
    metadata,
    Column("builder_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("status", enum_column(ReportStatus), nullable=False),
    Column("gate", document(), nullable=False),
    Column("gate_at", UtcDateTime),
    Column("checks", document(), nullable=False),
    Column("screenshots", document(), nullable=False),
    Column("note", ForeignText, nullable=False),
    Column("requested_by", ForeignText, nullable=False),
    Column("requested_at", UtcDateTime),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("attempts", Integer, nullable=False),
    Column("owner", Text, nullable=False),
    Column("copy_disk", Text),
    version_key("qa_reports"),
)


qa_screenshots = Table(
    "qa_screenshots",
    metadata,
    Column("builder_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("png", LargeBinary, nullable=False),
    version_key("qa_screenshots"),
)


reviews = Table(
    "reviews",
    metadata,
    # One tenant's only: a report must not reveal that another tenant has the same code.
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("reviewed_at", UtcDateTime, nullable=False, index=True),
    Column("report", document(), nullable=False),
)


acceptances = Table(
    "acceptances",
    metadata,
    Column("builder_id", Text, ForeignKey("builders.id"), primary_key=True),
    Column("fingerprint", Text, primary_key=True),
    Column("reason", ForeignText, nullable=False),
    Column("accepted_by", ForeignText, nullable=False),
    Column("accepted_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
)
