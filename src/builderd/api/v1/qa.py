"""QA: the verdict of the gate, the report on a copy, and its screenshots."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from builderd.api import openapi
from builderd.api.qa_formats import CTRF_MEDIA, JUNIT_MEDIA, make_ctrf, make_junit
from builderd.api.server.answers import success
from builderd.api.server.auth import Reader, TheApplication, Writer
from builderd.api.server.paths import PREFIX
from builderd.api.v1.builders import Uuid
from builderd.domain.errors import NotFound
from builderd.domain.qa import Check, ReportStatus, gate_passed
from builderd.schemas.v1.builders import MAX_INTEGER
from builderd.schemas.v1.reviews import Qa, QaAnswer, QaCheck, QaScreenshot
from builderd.schemas.v1.shape import Parameters
from builderd.services import qa

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
        202, QaAnswer, "Judged anew; the report is being made.", 404, 409, headers=openapi.LOCATION
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
    return success(QaAnswer(message="The report is being made: GET shows it.", data=data), 202, headers).response()


_FORMATS: dict[str, Any] = {
    JUNIT_MEDIA: {"schema": {"type": "string", "description": "With `format=junit`."}},
    CTRF_MEDIA: {"schema": {"type": "object", "description": "With `format=ctrf`."}},
}


@router.get(
    "/builders/{uuid}/qa", responses=openapi.answers(200, QaAnswer, "What is known so far.", 404, 422, content=_FORMATS)
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
            return success(QaAnswer(message=_message(view), data=_present(view, uuid.lower()))).response()


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
    return Qa(
        version=version.number,
        bundle_hash=version.bundle_hash,
        qa_passed=version.qa_passed,
        skipped=version.settings.skip_qa,
        gate=_checks(report.gate),
        gate_at=report.gate_at,
        status=report.status,
        checks=_checks(report.checks),
        screenshots=[
            QaScreenshot(name=name, url=f"{pictures}/{name}.png?version={version.number}")
            for name in report.screenshots
        ],
        note=report.note,
        requested_by=report.requested_by,
        started_at=report.started_at,
        finished_at=report.finished_at,
    )


def _checks(checks: Sequence[Check]) -> list[QaCheck]:
    return [
        QaCheck(
            name=one.name, outcome=one.outcome, message=one.message, seconds=one.seconds, findings=list(one.findings)
        )
        for one in checks
    ]


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
