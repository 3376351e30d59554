"""Reviews: the report on a version's code, a new one, and what people accept of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from builderd import __version__
from builderd.api import openapi
from builderd.api.server.answers import Answer, success
from builderd.api.server.auth import Reader, TheApplication, Writer, operations_of
from builderd.api.server.bodies import Received, json_body
from builderd.api.server.paths import PREFIX
from builderd.api.v1.builders import Uuid
from builderd.api.v1.qa import VersionQuery
from builderd.domain.tokens import Scope
from builderd.schemas.v1.reviews import SARIF, NewAcceptance, Review, ReviewAnswer, review_of, sarif_of
from builderd.services import verdicts
from builderd.services.verdicts import ReviewView

router = APIRouter(prefix=PREFIX, tags=[openapi.GATES])

MAX_BODY_BYTES = 20_000

Body = Annotated[Received[NewAcceptance], Depends(json_body(NewAcceptance, MAX_BODY_BYTES))]


class Format(StrEnum):
    JSON = "json"
    SARIF = "sarif"


class ReviewQuery(VersionQuery):
    """``sarif``: SARIF 2.1.0, JSON with one run."""

    format: Format = Format.JSON


_FORMATS: dict[str, Any] = {SARIF: {"schema": {"type": "object", "description": "With `format=sarif`."}}}


@router.post("/builders/{uuid}/review", responses=openapi.answers(200, ReviewAnswer, "What it finds now.", 404))
async def run_review(application: TheApplication, identity: Writer, uuid: Uuid) -> Response:
    """Review the current version's code again, by the present policy.

    A running app keeps running, whatever the result; it does not start again while it does not pass.
    """
    return _answer(await verdicts.again(application, identity.caller, uuid.lower())).response()


@router.get(
    "/builders/{uuid}/review", responses=openapi.answers(200, ReviewAnswer, "The report.", 404, 422, content=_FORMATS)
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
    if query.format is Format.SARIF:
        return Answer(200, sarif_of(_present(view), __version__)).response(SARIF)
    return _answer(view).response()


@router.post(
    "/builders/{uuid}/review/accept",
    responses=openapi.answers(200, ReviewAnswer, "The report, with what is accepted by now.", 400, 404, 409, 413, 422),
    openapi_extra=openapi.body_of(
        NewAcceptance, {"fingerprint": "0123456789abcdef0123456789abcdef", "reason": "an admin tool behind a login"}
    ),
)
async def accept_finding(application: TheApplication, identity: Writer, uuid: Uuid, body: Body) -> Response:
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
    return _answer(view, "Accepted. ").response()


def _present(view: ReviewView) -> Review:
    return review_of(view.report, view.verdict, view.version.number, outdated=view.outdated)


def _answer(view: ReviewView, before: str = "") -> Answer:
    return success(ReviewAnswer(message=before + _message(view), data=_present(view)))


def _message(view: ReviewView) -> str:
    number, stopping = view.version.number, len(view.verdict.open) + view.verdict.untold
    if view.outdated:
        return f"This is the review of version {number}, whose code is not the builder's any more."
    if view.verdict.passed:
        return f"Version {number} passes the review."
    return f"Version {number} does not pass the review: {stopping} finding{'s' * (stopping > 1)} must not stand."
