"""Reviews and QA reports in SQL: each report as JSON under its key, and the findings that people accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, bindparam, delete, exists, insert, select, tuple_, update

from builderd.domain.builders import Status
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.qa import Check, CheckName, Outcome, QaReport, ReportStatus, Screenshot
from builderd.domain.reviews import Acceptance, Finding, Report, Severity
from builderd.linux.json_files import from_stored
from builderd.store.database import Kind
from builderd.store.tables import acceptances, builders, qa_reports, qa_screenshots, reviews, versions
from builderd.store.types import UNSTORABLE, omit, row_of

_ONE = select(reviews).where(reviews.c.tenant_id == bindparam("tenant"), reviews.c.key == bindparam("which"))
_UPDATE = update(reviews).where(reviews.c.tenant_id == bindparam("tenant"), reviews.c.key == bindparam("which"))
_IN_USE = exists().where(
    versions.c.review_key == reviews.c.key,
    builders.c.id == versions.c.builder_id,
    builders.c.tenant_id == reviews.c.tenant_id,
    builders.c.status != Status.DELETED,
)
_UNUSED = select(reviews.c.tenant_id, reviews.c.key).where(reviews.c.reviewed_at < bindparam("before"), ~_IN_USE)

_ACCEPTED = (
    select(acceptances).where(acceptances.c.builder_id == bindparam("builder")).order_by(acceptances.c.accepted_at)
)
_DELETE_ACCEPTANCES = delete(acceptances).where(acceptances.c.builder_id == bindparam("builder"))
_ACCEPT_AGAIN = update(acceptances).where(
    and_(acceptances.c.builder_id == bindparam("builder"), acceptances.c.fingerprint == bindparam("which"))
)


class Reviews:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, tenant: TenantId, key: str) -> Report | None:
        """Return the report with this ``Report.key``."""
        row = self._connection.execute(_ONE, {"tenant": tenant, "which": key}).mappings().first()
        return _report(row["report"], row["reviewed_at"]) if row else None

    def put(self, tenant: TenantId, report: Report) -> None:
        """Add or replace it by its key. A character that cannot be stored becomes U+FFFD."""
        row = {"reviewed_at": report.reviewed_at, "report": _document(report)}
        key = {"tenant": tenant, "which": report.key}
        if self._connection.execute(_UPDATE, {**key, **row}).rowcount == 0:
            self._connection.execute(insert(reviews), {"tenant_id": tenant, "key": report.key, **row})

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` from before this time that no undeleted builder's version has; return the number."""
        unused = [tuple(row) for row in self._connection.execute(_UNUSED.limit(limit), {"before": before})]
        if unused:
            self._connection.execute(delete(reviews).where(tuple_(reviews.c.tenant_id, reviews.c.key).in_(unused)))
        return len(unused)


class Acceptances:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def save(self, acceptance: Acceptance) -> None:
        """Add it, or replace the finding's earlier one. The builder must be locked."""
        row = row_of(acceptance)
        key = {"builder": acceptance.builder_id, "which": acceptance.fingerprint}
        if self._connection.execute(_ACCEPT_AGAIN, {**key, **omit(row, "builder_id", "fingerprint")}).rowcount == 0:
            self._connection.execute(insert(acceptances), row)

    def of_builder(self, builder: BuilderId) -> Sequence[Acceptance]:
        """Return the builder's acceptances, oldest first, expired ones included."""
        return [Acceptance(**row) for row in self._connection.execute(_ACCEPTED, {"builder": builder}).mappings()]

    def delete(self, builder: BuilderId) -> None:
        """Delete all acceptances of the builder."""
        self._connection.execute(_DELETE_ACCEPTANCES, {"builder": builder})


def _document(report: Report) -> dict[str, Any]:
    row = omit(row_of(report), "reviewed_at")
    row["findings"] = [_finding_row(finding) for finding in report.findings]
    return {**row, "scanners": dict(report.scanners), "left_out": dict(report.left_out)}


def _finding_row(finding: Finding) -> dict[str, Any]:
    return {
        name: UNSTORABLE.sub("\ufffd", value) if isinstance(value, str) else value
        for name, value in row_of(finding).items()
    }


def _report(document: Mapping[str, Any], reviewed_at: datetime) -> Report:
    findings = tuple(
        replace(from_stored(Finding, finding), severity=Severity(finding["severity"]))
        for finding in document["findings"]
    )
    return from_stored(Report, {**document, "findings": findings, "reviewed_at": reviewed_at})


_OPEN = (ReportStatus.WAITING, ReportStatus.RUNNING)

_ONE_REPORT = select(qa_reports).where(
    qa_reports.c.builder_id == bindparam("builder"), qa_reports.c.version == bindparam("number")
)
_UNFINISHED = (
    select(qa_reports)
    .where(qa_reports.c.status.in_(_OPEN) | qa_reports.c.copy_disk.is_not(None))
    .order_by(qa_reports.c.requested_at, qa_reports.c.builder_id, qa_reports.c.version)
)
_UPDATE_REPORT = update(qa_reports).where(
    qa_reports.c.builder_id == bindparam("builder"), qa_reports.c.version == bindparam("number")
)
_PICTURES = qa_screenshots.c.builder_id == bindparam("builder"), qa_screenshots.c.version == bindparam("number")
_DELETE_ALL_PICTURES = delete(qa_screenshots).where(qa_screenshots.c.builder_id == bindparam("builder"))
_DELETE = delete(qa_reports).where(qa_reports.c.builder_id == bindparam("builder"), qa_reports.c.copy_disk.is_(None))
_PICTURE = select(qa_screenshots).where(*_PICTURES, qa_screenshots.c.name == bindparam("picture"))


class QaReports:
    def __init__(self, connection: Connection, written: set[Kind]) -> None:
        self._connection = connection
        self._written = written
        #: Reports that this transaction found lacking: who saves one has locked its builder.
        self._lacking: set[tuple[BuilderId, int]] = set()

    def get(self, builder: BuilderId, version: int) -> QaReport | None:
        row = self._connection.execute(_ONE_REPORT, {"builder": builder, "number": version}).mappings().first()
        if row is None:
            self._lacking.add((builder, version))
        return _qa_report(row) if row else None

    def save(self, report: QaReport) -> None:
        """Add or replace it; the builder must be locked."""
        if report.is_open:
            self._written.add(Kind.REPORTS)
        key = {"builder": report.builder_id, "number": report.version}
        row, is_new = _row(report), (report.builder_id, report.version) in self._lacking
        self._lacking.discard((report.builder_id, report.version))
        if (
            is_new
            or self._connection.execute(_UPDATE_REPORT, {**key, **omit(row, "builder_id", "version")}).rowcount == 0
        ):
            self._connection.execute(insert(qa_reports), row)

    def unfinished(self) -> Sequence[QaReport]:
        """Return those that are not finished or whose disk copy may still exist, the oldest request first."""
        return [_qa_report(row) for row in self._connection.execute(_UNFINISHED).mappings()]

    def put_screenshots(self, builder: BuilderId, version: int, screenshots: Sequence[Screenshot]) -> None:
        """Replace the screenshots of a version."""
        self._connection.execute(delete(qa_screenshots).where(*_PICTURES), {"builder": builder, "number": version})
        if screenshots:
            rows = [{"builder_id": builder, "version": version, **row_of(picture)} for picture in screenshots]
            self._connection.execute(insert(qa_screenshots), rows)

    def screenshot(self, builder: BuilderId, version: int, name: str) -> Screenshot | None:
        values = {"builder": builder, "number": version, "picture": name}
        row = self._connection.execute(_PICTURE, values).mappings().first()
        return Screenshot(row["name"], row["width"], row["height"], bytes(row["png"])) if row else None

    def delete(self, builder: BuilderId) -> None:
        """Delete the builder's reports and screenshots, except reports whose disk copy may still exist."""
        self._connection.execute(_DELETE_ALL_PICTURES, {"builder": builder})
        self._connection.execute(_DELETE, {"builder": builder})


def _row(report: QaReport) -> dict[str, Any]:
    row = row_of(report)
    for name in ("gate", "checks"):
        row[name] = [_report_document(check) for check in row[name]]
    row["screenshots"] = list(row["screenshots"])
    return row


def _report_document(check: Check) -> dict[str, Any]:
    row = row_of(check)
    row["message"] = UNSTORABLE.sub("\ufffd", row["message"])
    row["findings"] = [UNSTORABLE.sub("\ufffd", finding) for finding in row["findings"]]
    return row


def _qa_report(row: RowMapping) -> QaReport:
    values = dict(row)
    for name in ("gate", "checks"):
        values[name] = tuple(_check(document) for document in values[name])
    values["screenshots"] = tuple(values["screenshots"])
    return QaReport(**values)


def _check(document: Mapping[str, Any]) -> Check:
    return Check(
        CheckName(document["name"]),
        Outcome(document["outcome"]),
        document["message"],
        document["seconds"],
        tuple(document["findings"]),
    )
