"""Verdicts: the consequence of a review for a version, and findings that people accept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from builderd.application import Application
from builderd.builders import service as builders
from builderd.builders.model import Builder
from builderd.builders.service import Caller
from builderd.code import service as bundles
from builderd.core.errors import Forbidden, InvalidState, NotFound, ValidationFailed
from builderd.core.ids import TenantId
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import Event
from builderd.review.model import (
    ORDER,
    Acceptance,
    Finding,
    Report,
    Severity,
    Verdict,
    content_hash,
    judge,
    location,
    report_key,
)
from builderd.versions.model import Version


@dataclass(frozen=True, slots=True)
class ReviewView:
    """The review of a version. ``outdated``: the builder has other code meanwhile."""

    version: Version
    report: Report
    verdict: Verdict
    outdated: bool


@dataclass(frozen=True, slots=True)
class NewAcceptance:
    """An acceptance. ``expires_at`` None: for good. ``as_admin``: the caller may also accept ``block`` findings."""

    fingerprint: str
    reason: str
    expires_at: datetime | None
    as_admin: bool


async def report_of(
    application: Application, tenant_id: TenantId, version: Version, *, afresh: bool = False
) -> tuple[Report, bool]:
    """Return the report on the version's code, and True if an earlier report is used again.

    An incomplete report is made again, and any report if ``afresh``. Raises ``BundleLost``.
    """
    key = report_key(_content_of(version), application.review.key)
    kept = None if afresh else await application.store.read(lambda uow: uow.reviews.get(tenant_id, key))
    if kept is not None and kept.is_complete:
        return kept, True
    gate, commands = application.review, version.settings.commands
    async with gate.concurrency[tenant_id]:
        bundle = await bundles.fetch(application, version)
        return await gate.review(bundle, commands, application.clock.now()), False


def record(uow: UnitOfWork, builder: Builder, number: int, report: Report, by: str, now: datetime) -> Verdict:
    """Store the report of the version, and the verdict unless its review was skipped."""
    uow.reviews.put(builder.tenant_id, report)
    version = uow.versions.require(builder.id, number)
    verdict = _judge(uow, builder, replace(version, review_key=report.key), report, now)
    kind = "review.passed" if verdict.passed else "review.failed"
    reason = f"the review of version {number} {'passed' if verdict.passed else 'found what must not run'}"
    counts = {f"{severity.value}s": sum(f.severity is severity for f in report.findings) for severity in Severity}
    unaccepted = len(verdict.open) + verdict.untold
    details = {"version": number, **counts, "open": unaccepted, "content_hash": report.content_hash}
    uow.events.add(Event(builder.tenant_id, builder.id, now, kind, by, reason, details))
    return verdict


def _judge(uow: UnitOfWork, builder: Builder, version: Version, report: Report, now: datetime) -> Verdict:
    verdict = judge(report, uow.acceptances.of_builder(builder.id), now)
    if not version.settings.skip_review:
        version = replace(version, review_passed=verdict.passed, review_until=verdict.until)
    uow.versions.save(version)
    return verdict


def get(uow: UnitOfWork, tenant_id: TenantId, builder_id: str, now: datetime, number: int | None = None) -> ReviewView:
    """Return the review of a version, by default of the current one, or of the last one before it.

    Raises ``NotFound``.
    """
    builder = builders.get(uow, tenant_id, builder_id)
    for version in uow.versions.list(builder.id):  # newest first
        is_wanted = version.number <= builder.version if number is None else version.number == number
        if is_wanted and (report := _report(uow, builder, version)) is not None:
            current = uow.versions.require(builder.id, builder.version)
            verdict = judge(report, uow.acceptances.of_builder(builder.id), now)
            # A failed version was never the builder's code, so its review is not outdated.
            outdated = version.number <= current.number and report.content_hash != _content_of(current)
            return ReviewView(version, report, verdict, outdated)
    wanted = builder.version if number is None else number
    found = uow.versions.get(builder.id, wanted)
    if found is None:
        raise NotFound(f"The builder has no version {wanted}: its current one is {builder.version}.")
    if found.settings.skip_review:
        cure = f"POST /api/v1/builders/{builder.id}/review makes one"
        raise NotFound(f"The review was left out for version {wanted}: {cure}.")
    raise NotFound(f"Version {wanted} is not reviewed yet: look again in a moment.")


def _report(uow: UnitOfWork, builder: Builder, version: Version) -> Report | None:
    return uow.reviews.get(builder.tenant_id, version.review_key) if version.review_key else None


async def again(application: Application, caller: Caller, builder_id: str) -> ReviewView:
    """Review the current version's code again. A running app keeps running. Raises ``NotFound``."""

    def load(uow: UnitOfWork) -> Version:
        builder = builders.get(uow, caller.tenant_id, builder_id)
        return uow.versions.require(builder.id, builder.version)

    version = await application.store.read(load)
    report, _ = await report_of(application, caller.tenant_id, version, afresh=True)
    now = application.clock.now()

    def write(uow: UnitOfWork) -> Builder:
        builder = builders.get(uow, caller.tenant_id, builder_id, lock=True)
        record(uow, builder, version.number, report, caller.actor, now)
        return builder

    await application.commit(write)
    return await application.store.read(lambda uow: get(uow, caller.tenant_id, builder_id, now, version.number))


async def accept(application: Application, caller: Caller, builder_id: str, new: NewAcceptance, now: datetime) -> int:
    """Accept a finding for this and later versions of the builder; return the newest version that has it.

    Raises ``NotFound``, ``InvalidState`` for a finding that cannot be accepted, ``Forbidden`` for one that only an
    admin can, and ``ValidationFailed`` if it needs a date, or the date is over.
    """

    def write(uow: UnitOfWork) -> _Accepted:
        builder = builders.get(uow, caller.tenant_id, builder_id, lock=True)
        return _Accepted(builder, _accept(uow, builder, caller, new, now))

    return (await application.commit(write)).version


class _Accepted(NamedTuple):
    builder: Builder
    version: int


def _accept(uow: UnitOfWork, builder: Builder, caller: Caller, new: NewAcceptance, now: datetime) -> int:
    reviewed = [(one, report) for one in uow.versions.list(builder.id) if (report := _report(uow, builder, one))]
    having = [
        (version, report, finding)
        for version, report in reviewed
        for finding in report.findings
        if finding.fingerprint == new.fingerprint
    ]
    if not having:
        raise NotFound(
            f"No review of this builder has a finding of this fingerprint: GET /api/v1/builders/{builder.id}/review "
            "lists them (?version= for another version than the current one)."
        )
    gravest = min((finding for _, _, finding in having), key=lambda one: ORDER[one.severity])
    _check(gravest, new, now)
    uow.acceptances.save(Acceptance(builder.id, new.fingerprint, new.reason, caller.actor, now, new.expires_at))
    for version, report, _ in having:
        _judge(uow, builder, version, report, now)
    details = {
        "fingerprint": gravest.fingerprint,
        "rule": gravest.rule,
        "severity": gravest.severity.value,
        "path": gravest.path,
        "line": gravest.line,
        "reason": new.reason,
        "expires_at": new.expires_at.isoformat() if new.expires_at else None,
    }
    reason = f"{gravest.rule} at {location(gravest)} accepted by {caller.actor}: {new.reason}"
    uow.events.add(Event(builder.tenant_id, builder.id, now, "review.accepted", caller.actor, reason, details))
    return having[0][0].number


def _check(finding: Finding, new: NewAcceptance, now: datetime) -> None:
    if finding.severity is Severity.WARN:
        raise InvalidState(f"{finding.rule} only warns: there is nothing to accept.")
    if not finding.acceptable:
        raise InvalidState(f"{finding.rule} cannot be accepted, since such code cannot run or be judged: fix it.")
    if new.expires_at is not None and new.expires_at <= now:
        raise ValidationFailed({"expires": ["must be in the future"]})
    if finding.severity is Severity.HOLD:
        return
    if not new.as_admin:
        raise Forbidden(f"{finding.rule} blocks: only a token with the scope admin can accept it.")
    if new.expires_at is None:
        raise ValidationFailed({"expires": ["is required for a finding that blocks: say until when it is accepted"]})


def _content_of(version: Version) -> str:
    return content_hash(version.bundle_hash, version.settings.commands)
