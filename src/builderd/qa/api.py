"""The gates: QA and review of a version, and their reports."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import Field

from builderd import __version__
from builderd.builders.api import Uuid
from builderd.core.errors import NotFound
from builderd.qa import service as qa
from builderd.qa.model import Check, Outcome, QaReport, ReportStatus, gate_passed
from builderd.review import verdicts
from builderd.review.verdicts import ReviewView
from builderd.schemas.builders import MAX_INTEGER
from builderd.schemas.reviews import SARIF, NewAcceptance, Qa, QaScreenshot, Review, review_of, sarif_of
from builderd.schemas.shape import Parameters, Success
from builderd.server import openapi
from builderd.server.answers import PREFIX, Answer, success
from builderd.server.auth import Reader, TheApplication, Writer, operations_of
from builderd.server.bodies import Received, json_body
from builderd.tokens.model import Scope

JUNIT_MEDIA = "application/xml"
CTRF_MEDIA = "application/vnd.ctrf+json"
#: Characters that XML 1.0 cannot contain, not even as character references.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CTRF_STATUS = {
    Outcome.PASSED: "passed",
    Outcome.WARNING: "passed",
    Outcome.FAILED: "failed",
    Outcome.NOT_JUDGED: "skipped",
}


def make_junit(report: QaReport) -> str:
    """Return the report as JUnit XML: a suite for the gate, one for the report. Checks not judged are skipped."""
    checks = [check for _, suite in _suites(report) for check in suite]
    root = Element("testsuites", {"name": "builderd QA", **_counted(checks)})
    for name, suite in _suites(report):
        seconds = f"{sum(check.seconds for check in suite):.3f}"
        element = SubElement(root, "testsuite", {"name": name, **_counted(suite), "time": seconds})
        for check in suite:
            _add_case(element, name, check)
    indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'


def _suites(report: QaReport) -> Sequence[tuple[str, Sequence[Check]]]:
    return ("gate", report.gate), ("report", report.checks)


def _counts(checks: Sequence[Check]) -> tuple[int, int, int]:
    failed = sum(check.outcome is Outcome.FAILED for check in checks)
    skipped = sum(check.outcome is Outcome.NOT_JUDGED for check in checks)
    return len(checks), failed, skipped


def _counted(checks: Sequence[Check]) -> dict[str, str]:
    tests, failures, skipped = map(str, _counts(checks))
    return {"tests": tests, "failures": failures, "skipped": skipped, "errors": "0"}


def _add_case(suite: Element, name: str, check: Check) -> None:
    head = {"classname": f"qa.{name}", "name": check.name.value, "time": f"{check.seconds:.3f}"}
    case = SubElement(suite, "testcase", head)
    message, said = (
        _NOT_XML.sub("\ufffd", text) for text in (check.message, "\n".join((check.message, *check.findings)))
    )
    match check.outcome:
        case Outcome.FAILED:
            SubElement(case, "failure", message=message).text = said
        case Outcome.NOT_JUDGED:
            SubElement(case, "skipped", message=message)
        case _:
            SubElement(case, "system-out").text = said


def make_ctrf(report: QaReport) -> str:
    """Return the report as CTRF JSON; times are in milliseconds."""
    checks = [check for _, suite in _suites(report) for check in suite]
    tests, failed, skipped = _counts(checks)
    summary = {
        "tests": tests,
        "passed": tests - failed - skipped,
        "failed": failed,
        "skipped": skipped,
        "pending": 0,
        "other": 0,
        "start": _milliseconds(report.gate_at),
        "stop": _milliseconds(report.finished_at or report.gate_at),
    }
    cases = [_ctrf(name, check) for name, suite in _suites(report) for check in suite]
    document = {"tool": {"name": "builderd-qa"}, "summary": summary, "tests": cases}
    return json.dumps({"reportFormat": "CTRF", "specVersion": "0.0.0", "results": document}, ensure_ascii=False)


def _ctrf(suite: str, check: Check) -> dict[str, Any]:
    case = {
        "name": check.name.value,
        "status": _CTRF_STATUS[check.outcome],
        "duration": round(check.seconds * 1000),
        "suite": [suite],
        "message": check.message,
        "rawStatus": check.outcome.value,
    }
    return {**case, "trace": "\n".join(check.findings)} if check.findings else case


def _milliseconds(time: datetime | None) -> int:
    return round(time.timestamp() * 1000) if time else 0


router = APIRouter(prefix=PREFIX, tags=[openapi.GATES])

PICTURE = re.compile(r"(desktop|phone)(?:\.png)?")


class Format(StrEnum):
    JSON = "json"
    JUNIT = "junit"
    CTRF = "ctrf"


class VersionQuery(Parameters):
    """A version of a builder; the current one when left out."""

    version: int | None = Field(default=None, ge=1, le=MAX_INTEGER)


class QaQuery(VersionQuery):
    """A QA report's version and format: ``junit`` is JUnit XML, ``ctrf`` the Common Test Report Format, JSON."""

    format: Format = Format.JSON


@router.post(
    "/builders/{uuid}/qa",
    status_code=202,
    responses=openapi.answers(
        202, Success[Qa], "Judged anew; the report is being made.", 404, 409, headers=openapi.LOCATION
    ),
)
async def run_qa(application: TheApplication, identity: Writer, uuid: Uuid) -> Response:
    """Judge the running app again, and make a new report on a copy.

    The gate's verdict is in the answer; the report comes some seconds later, and `GET` shows it. A builder that does
    not run keeps its verdict, and gets its report all the same.
    """
    view = await qa.again(application, identity.caller, uuid.lower())
    data = _present(view, uuid.lower())
    headers = {"Location": f"{PREFIX}/builders/{uuid.lower()}/qa"}
    return success(Success[Qa](message="The report is being made: GET shows it.", data=data), 202, headers).response()


_FORMATS: dict[str, Any] = {
    JUNIT_MEDIA: {"schema": {"type": "string", "description": "With `format=junit`."}},
    CTRF_MEDIA: {"schema": {"type": "object", "description": "With `format=ctrf`."}},
}


@router.get(
    "/builders/{uuid}/qa",
    responses=openapi.answers(200, Success[Qa], "What is known so far.", 404, 422, content=_FORMATS),
)
async def get_qa(
    application: TheApplication, identity: Reader, uuid: Uuid, query: Annotated[QaQuery, Query()]
) -> Response:
    """Return the gate's verdict and the report of a version."""
    tenant_id = identity.token.tenant_id
    view = await application.store.read(lambda uow: qa.get(uow, tenant_id, uuid.lower(), query.version))
    match query.format:
        case Format.JUNIT:
            return Response(make_junit(view.report), media_type=JUNIT_MEDIA)
        case Format.CTRF:
            return Response(make_ctrf(view.report), media_type=CTRF_MEDIA)
        case Format.JSON:
            return success(Success[Qa](message=_message(view), data=_present(view, uuid.lower()))).response()


@router.get(
    "/builders/{uuid}/qa/screenshots/{name}",
    responses={
        200: {
            "description": "The picture.",
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        },
        **openapi.failures(401, 403, 404, 422),
    },
)
async def get_screenshot(
    application: TheApplication,
    identity: Reader,
    uuid: Uuid,
    name: Annotated[str, Path(description="`desktop` or `phone`, with or without `.png`.")],
    query: Annotated[VersionQuery, Query()],
) -> Response:
    """Return a screenshot of `/`, as a PNG."""
    match = PICTURE.fullmatch(name)
    if match is None:
        raise NotFound("Screenshots are named desktop and phone.")
    tenant_id = identity.token.tenant_id
    found = await application.store.read(
        lambda uow: qa.screenshot(uow, tenant_id, uuid.lower(), match[1], query.version)
    )
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-cache"}
    return Response(found.png, media_type="image/png", headers=headers)


def _present(view: qa.QaView, uuid: str) -> Qa:
    version, report = view.version, view.report
    pictures = f"{PREFIX}/builders/{uuid}/qa/screenshots"
    return Qa.of(
        report,
        version=version.number,
        bundle_hash=version.bundle_hash,
        qa_passed=version.qa_passed,
        skipped=version.settings.skip_qa,
        screenshots=[
            QaScreenshot(name=name, url=f"{pictures}/{name}.png?version={version.number}")
            for name in report.screenshots
        ],
    )


def _message(view: qa.QaView) -> str:
    report = {
        ReportStatus.NONE: "there is no report",
        ReportStatus.WAITING: "its report is still to be made",
        ReportStatus.RUNNING: "its report is being made",
        ReportStatus.DONE: "its report is there",
        ReportStatus.DROPPED: "its report was not made",
    }[view.report.status]
    return f"{_verdict(view)}; {report}."


def _verdict(view: qa.QaView) -> str:
    number, gate = view.version.number, view.report.gate
    if not view.version.settings.skip_qa:
        said = {True: "passed", False: "failed", None: "is not judged yet"}[view.version.qa_passed]
        return f"Version {number} {said}"
    if not gate:
        return f"The gate was left out for version {number}"
    said = "passed" if gate_passed(gate) else "failed"
    return f"The gate was left out for version {number}, which {said} it when it was judged later"


MAX_ACCEPTANCE_BYTES = 20_000

AcceptanceBody = Annotated[Received[NewAcceptance], Depends(json_body(NewAcceptance, MAX_ACCEPTANCE_BYTES))]


class ReviewFormat(StrEnum):
    JSON = "json"
    SARIF = "sarif"


class ReviewQuery(VersionQuery):
    """``sarif``: SARIF 2.1.0, JSON with one run."""

    format: ReviewFormat = ReviewFormat.JSON


_REVIEW_FORMATS: dict[str, Any] = {SARIF: {"schema": {"type": "object", "description": "With `format=sarif`."}}}


@router.post("/builders/{uuid}/review", responses=openapi.answers(200, Success[Review], "What it finds now.", 404))
async def run_review(application: TheApplication, identity: Writer, uuid: Uuid) -> Response:
    """Review the current version's code again, by the present policy.

    A running app keeps running, whatever the result; it does not start again while it does not pass.
    """
    return _review_answer(await verdicts.again(application, identity.caller, uuid.lower())).response()


@router.get(
    "/builders/{uuid}/review",
    responses=openapi.answers(200, Success[Review], "The report.", 404, 422, content=_REVIEW_FORMATS),
)
async def get_review(
    request: Request, application: TheApplication, identity: Reader, uuid: Uuid, query: Annotated[ReviewQuery, Query()]
) -> Response:
    """The review of a version, with what was accepted of it.

    Without `version` that of the current one; where that has none, the last before it, which says that it is outdated
    if the code is another.
    """
    tenant_id, now = identity.token.tenant_id, application.clock.now()
    async with operations_of(request).lists.one(tenant_id):
        view = await application.store.read(lambda uow: verdicts.get(uow, tenant_id, uuid.lower(), now, query.version))
    if query.format is ReviewFormat.SARIF:
        return Answer(200, sarif_of(_present_review(view), __version__)).response(SARIF)
    return _review_answer(view).response()


@router.post(
    "/builders/{uuid}/review/accept",
    responses=openapi.answers(
        200, Success[Review], "The report, with what is accepted by now.", 400, 404, 409, 413, 422
    ),
    openapi_extra=openapi.body_of(
        NewAcceptance, {"fingerprint": "0123456789abcdef0123456789abcdef", "reason": "an admin tool behind a login"}
    ),
)
async def accept_finding(application: TheApplication, identity: Writer, uuid: Uuid, body: AcceptanceBody) -> Response:
    """Accept a finding: of this builder, from now on, for as long as its line stays as it is.

    A hold needs a reason, a block a token with the scope `admin` and a date as well. Nothing is started by it: `start`
    the builder, or deploy the same code again.
    """
    new, now = body.value, application.clock.now()
    asked = verdicts.NewAcceptance(
        new.fingerprint, new.reason, new.expires, as_admin=identity.token.allows(Scope.ADMIN)
    )
    number = await verdicts.accept(application, identity.caller, uuid.lower(), asked, now)
    tenant_id = identity.token.tenant_id
    view = await application.store.read(lambda uow: verdicts.get(uow, tenant_id, uuid.lower(), now, number))
    return _review_answer(view, "Accepted. ").response()


def _present_review(view: ReviewView) -> Review:
    return review_of(view.report, view.verdict, view.version.number, outdated=view.outdated)


def _review_answer(view: ReviewView, before: str = "") -> Answer:
    return success(Success[Review](message=before + _review_message(view), data=_present_review(view)))


def _review_message(view: ReviewView) -> str:
    number, stopping = view.version.number, len(view.verdict.open) + view.verdict.untold
    if view.outdated:
        return f"This is the review of version {number}, whose code is not the builder's any more."
    if view.verdict.passed:
        return f"Version {number} passes the review."
    return f"Version {number} does not pass the review: {stopping} finding{'s' * (stopping > 1)} must not stand."
