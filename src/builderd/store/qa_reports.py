"""QA reports in SQL: one row per version, its checks as JSON, its screenshots in their own table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, delete, insert, select, update

from builderd.domain.ids import BuilderId
from builderd.domain.qa import Check, CheckName, Outcome, QaReport, ReportStatus, Screenshot
from builderd.store.tables import qa_reports, qa_screenshots
from builderd.store.types import UNSTORABLE, omit, row_of
from builderd.store.writes import Kind

_OPEN = (ReportStatus.WAITING, ReportStatus.RUNNING)

_ONE = select(qa_reports).where(
    qa_reports.c.builder_id == bindparam("builder"), qa_reports.c.version == bindparam("number")
)
_UNFINISHED = (
    select(qa_reports)
    .where(qa_reports.c.status.in_(_OPEN) | qa_reports.c.copy_disk.is_not(None))
    .order_by(qa_reports.c.requested_at, qa_reports.c.builder_id, qa_reports.c.version)
)
_INSERT = insert(qa_reports)
_UPDATE = update(qa_reports).where(
    qa_reports.c.builder_id == bindparam("builder"), qa_reports.c.version == bindparam("number")
)
_PICTURES = qa_screenshots.c.builder_id == bindparam("builder"), qa_screenshots.c.version == bindparam("number")
_DELETE_PICTURES = delete(qa_screenshots).where(*_PICTURES)
_DELETE_ALL_PICTURES = delete(qa_screenshots).where(qa_screenshots.c.builder_id == bindparam("builder"))
_DELETE = delete(qa_reports).where(qa_reports.c.builder_id == bindparam("builder"), qa_reports.c.copy_disk.is_(None))
_INSERT_PICTURE = insert(qa_screenshots)
_PICTURE = select(qa_screenshots).where(*_PICTURES, qa_screenshots.c.name == bindparam("picture"))


class QaReports:
    def __init__(self, connection: Connection, written: set[Kind]) -> None:
        self._connection = connection
        self._written = written
        #: Reports that this transaction found lacking: who saves one has locked its builder.
        self._lacking: set[tuple[BuilderId, int]] = set()

    def get(self, builder: BuilderId, version: int) -> QaReport | None:
        row = self._connection.execute(_ONE, {"builder": builder, "number": version}).mappings().first()
        if row is None:
            self._lacking.add((builder, version))
        return _report(row) if row else None

    def save(self, report: QaReport) -> None:
        """Add or replace it; the builder must be locked."""
        if report.is_open:
            self._written.add(Kind.REPORTS)
        key = {"builder": report.builder_id, "number": report.version}
        row, is_new = _row(report), (report.builder_id, report.version) in self._lacking
        self._lacking.discard((report.builder_id, report.version))
        if is_new or self._connection.execute(_UPDATE, {**key, **omit(row, "builder_id", "version")}).rowcount == 0:
            self._connection.execute(_INSERT, row)

    def unfinished(self) -> Sequence[QaReport]:
        """Return those that are not finished or whose disk copy may still exist, the oldest request first."""
        return [_report(row) for row in self._connection.execute(_UNFINISHED).mappings()]

    def put_screenshots(self, builder: BuilderId, version: int, screenshots: Sequence[Screenshot]) -> None:
        """Replace the screenshots of a version."""
        self._connection.execute(_DELETE_PICTURES, {"builder": builder, "number": version})
        if screenshots:
            rows = [{"builder_id": builder, "version": version, **row_of(picture)} for picture in screenshots]
            self._connection.execute(_INSERT_PICTURE, rows)

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
        row[name] = [_document(check) for check in row[name]]
    row["screenshots"] = list(row["screenshots"])
    return row


def _document(check: Check) -> dict[str, Any]:
    row = row_of(check)
    row["message"] = UNSTORABLE.sub("\ufffd", row["message"])
    row["findings"] = [UNSTORABLE.sub("\ufffd", finding) for finding in row["findings"]]
    return row


def _report(row: RowMapping) -> QaReport:
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
