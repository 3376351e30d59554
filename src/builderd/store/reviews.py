"""Reviews in SQL: each report as JSON under its key, and the findings that people accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, exists, insert, select, tuple_, update

from builderd.domain.builders import Status
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.reviews import Acceptance, Finding, Report, Severity
from builderd.linux.json_files import from_stored
from builderd.store.tables import acceptances, builders, reviews, versions
from builderd.store.types import UNSTORABLE, omit, row_of

_ONE = select(reviews).where(reviews.c.tenant_id == bindparam("tenant"), reviews.c.key == bindparam("which"))
_INSERT = insert(reviews)
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
_ACCEPT = insert(acceptances)
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
            self._connection.execute(_INSERT, {"tenant_id": tenant, "key": report.key, **row})

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
            self._connection.execute(_ACCEPT, row)

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
