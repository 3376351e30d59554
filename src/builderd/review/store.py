"""Reviews and QA reports in SQL: each report as JSON under its key, and the findings that people accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    RowMapping,
    Table,
    Text,
    delete,
    exists,
    insert,
    select,
    tuple_,
    update,
)

from builderd.builders.model import Status
from builderd.builders.table import builders
from builderd.core.ids import BuilderId, TenantId
from builderd.database.columns import document, metadata, version_key
from builderd.database.connection import Kind
from builderd.database.repository import Queries, Repository
from builderd.database.types import UNSTORABLE, ForeignText, UtcDateTime, enum_column, omit, row_of
from builderd.linux.atomic_files import from_stored
from builderd.qa.model import Check, CheckName, Outcome, QaReport, ReportStatus, Screenshot
from builderd.review.model import Acceptance, Finding, Report, Severity
from builderd.versions.store import versions

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


_IN_USE = exists().where(
    versions.c.review_key == reviews.c.key,
    builders.c.id == versions.c.builder_id,
    builders.c.tenant_id == reviews.c.tenant_id,
    builders.c.status != Status.DELETED,
)


class Reviews(Queries):
    def get(self, tenant: TenantId, key: str) -> Report | None:
        """Return the report with this ``Report.key``."""
        is_it = reviews.c.tenant_id == tenant, reviews.c.key == key
        row = self._connection.execute(select(reviews).where(*is_it)).mappings().first()
        if row is None:
            return None
        document = row["report"]
        findings = tuple(
            replace(from_stored(Finding, finding), severity=Severity(finding["severity"]))
            for finding in document["findings"]
        )
        return from_stored(Report, {**document, "findings": findings, "reviewed_at": row["reviewed_at"]})

    def put(self, tenant: TenantId, report: Report) -> None:
        """Add or replace it by its key. A character that cannot be stored becomes U+FFFD."""
        findings = [_storable(row_of(finding)) for finding in report.findings]
        document = {**omit(row_of(report), "reviewed_at"), "findings": findings}
        document |= {"scanners": dict(report.scanners), "left_out": dict(report.left_out)}
        row = {"reviewed_at": report.reviewed_at, "report": document}
        is_it = reviews.c.tenant_id == tenant, reviews.c.key == report.key
        if self._change(update(reviews).where(*is_it), **row) == 0:
            self._change(insert(reviews), tenant_id=tenant, key=report.key, **row)

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` from before this time that no undeleted builder's version has; return the number."""
        keys = select(reviews.c.tenant_id, reviews.c.key).where(reviews.c.reviewed_at < before, ~_IN_USE)
        unused = [tuple(row) for row in self._connection.execute(keys.limit(limit))]
        if unused:
            self._connection.execute(delete(reviews).where(tuple_(reviews.c.tenant_id, reviews.c.key).in_(unused)))
        return len(unused)


class Acceptances(Repository[Acceptance]):
    _table, _record, _key = acceptances, Acceptance, ("builder_id", "fingerprint")

    def save(self, value: Acceptance) -> None:
        """Add it, or replace the finding's earlier one. The builder must be locked."""
        if not self._update(value):
            self.add(value)

    def of_builder(self, builder: BuilderId) -> Sequence[Acceptance]:
        """Return the builder's acceptances, oldest first, expired ones included."""
        of_builder = acceptances.c.builder_id == builder
        return self._all(select(acceptances).where(of_builder).order_by(acceptances.c.accepted_at))

    def delete(self, builder: BuilderId) -> None:
        """Delete all acceptances of the builder."""
        self._change(delete(acceptances).where(acceptances.c.builder_id == builder))


_OPEN = (ReportStatus.WAITING, ReportStatus.RUNNING)

_UNFINISHED = (
    select(qa_reports)
    .where(qa_reports.c.status.in_(_OPEN) | qa_reports.c.copy_disk.is_not(None))
    .order_by(qa_reports.c.requested_at, qa_reports.c.builder_id, qa_reports.c.version)
)


class QaReports(Repository[QaReport]):
    _table, _record, _key = qa_reports, QaReport, ("builder_id", "version")

    def get(self, builder: BuilderId, version: int) -> QaReport | None:
        is_it = qa_reports.c.builder_id == builder, qa_reports.c.version == version
        return self._first(select(qa_reports).where(*is_it))

    def save(self, value: QaReport) -> None:
        """Add or replace it; the builder must be locked."""
        if value.is_open:
            self._written.add(Kind.REPORTS)
        if not self._update(value):
            self.add(value)

    def unfinished(self) -> Sequence[QaReport]:
        """Return those that are not finished or whose disk copy may still exist, the oldest request first."""
        return self._all(_UNFINISHED)

    def put_screenshots(self, builder: BuilderId, version: int, screenshots: Sequence[Screenshot]) -> None:
        """Replace the screenshots of a version."""
        of_version = qa_screenshots.c.builder_id == builder, qa_screenshots.c.version == version
        self._change(delete(qa_screenshots).where(*of_version))
        if screenshots:
            rows = [{"builder_id": builder, "version": version, **row_of(picture)} for picture in screenshots]
            self._connection.execute(insert(qa_screenshots), rows)

    def screenshot(self, builder: BuilderId, version: int, name: str) -> Screenshot | None:
        of_version = qa_screenshots.c.builder_id == builder, qa_screenshots.c.version == version
        named = select(qa_screenshots).where(*of_version, qa_screenshots.c.name == name)
        row = self._connection.execute(named).first()
        return Screenshot(row.name, row.width, row.height, row.png) if row else None

    def delete(self, builder: BuilderId) -> None:
        """Delete the builder's reports and screenshots, except reports whose disk copy may still exist."""
        self._change(delete(qa_screenshots).where(qa_screenshots.c.builder_id == builder))
        self._change(delete(qa_reports).where(qa_reports.c.builder_id == builder, qa_reports.c.copy_disk.is_(None)))

    def _row(self, value: QaReport) -> dict[str, Any]:
        row = row_of(value)
        for name in ("gate", "checks"):
            row[name] = [_storable(row_of(check)) for check in row[name]]
        return {**row, "screenshots": list(value.screenshots)}

    def _value(self, row: RowMapping) -> QaReport:
        values = {**row, "screenshots": tuple(row["screenshots"])}
        for name in ("gate", "checks"):
            values[name] = tuple(_check(document) for document in row[name])
        return QaReport(**values)


def _storable(document: Any) -> Any:
    """Return a document whose texts have U+FFFD for characters that cannot be stored."""
    if isinstance(document, dict):
        return {name: _storable(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_storable(value) for value in document]
    return UNSTORABLE.sub("\ufffd", document) if isinstance(document, str) else document


def _check(document: Mapping[str, Any]) -> Check:
    name, outcome = CheckName(document["name"]), Outcome(document["outcome"])
    return from_stored(Check, {**document, "name": name, "outcome": outcome, "findings": tuple(document["findings"])})
