"""Answers to calls that change a builder's desired state."""

from __future__ import annotations

from collections.abc import Mapping

from builderd.api.server.answers import Answer, failure, success
from builderd.api.server.paths import PREFIX
from builderd.api.server.preferences import APPLIED
from builderd.api.v1.presenters import present_builder, read_builder, read_view
from builderd.domain.builders import Builder, Desired, JobType, Status
from builderd.domain.errors import NotFound
from builderd.domain.qa import gate_failure
from builderd.schemas.v1.builders import BuilderAnswer
from builderd.services import builders, outcomes
from builderd.services.application import Application
from builderd.services.builders import BuilderView


def location(builder: Builder) -> dict[str, str]:
    """Return the ``Location`` header with the builder's path."""
    return {"Location": f"/api/v1/builders/{builder.id}"}


async def accepted(application: Application, builder: Builder, doing: str) -> Answer:
    """Return 202 at once: the work continues in the background, and the builder shows its progress."""
    data = await read_builder(application, builder, with_token=True)
    message = f"{builder.name} is being {doing}: GET {location(builder)['Location']} tells how far it is."
    return success(BuilderAnswer(message=message, data=data), 202, {**location(builder), **APPLIED})


async def created(application: Application, builder: Builder, *, seen: int | None) -> Answer:
    """Wait as ``started`` does for a builder that was created; ``seen`` as ``wait_for_view`` takes it."""
    return await started(application, builder, 201, location(builder), seen=seen)


async def started(
    application: Application,
    builder: Builder,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    *,
    seen: int | None = None,
) -> Answer:
    """Wait for the outcome of the builder's present run: return the builder, or the failure of a stage.

    Raises errors that are no outcome and must not be kept as one, such as ``StoreUnavailable``.
    """
    try:
        view = await builders.wait_for_view(application, builder, seen)
    except outcomes.FAILED as error:
        return failure(error)
    if view.builder.desired is Desired.DELETED:
        return failure(NotFound("The builder was deleted in the meantime.", data={"uuid": builder.id}))
    return await _shown(application, view, status, headers)


async def ended(application: Application, builder: Builder) -> Answer:
    """Wait until the builder is stopped or deleted and return it, however its last run went."""
    return await _shown(application, await builders.view_when_settled(application, builder))


async def shown_as(
    application: Application, builder: Builder, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    """Return success, with the builder as it is now."""
    return await _shown(application, await read_view(application, builder), status, headers)


async def _shown(
    application: Application, view: BuilderView, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    builder, data = view.builder, present_builder(view, with_token=True)
    failed = await _qa_failure(application, builder, data.version) if data.qa_passed is False else ""
    return success(BuilderAnswer(message=_message(builder, data.preview_url, failed), data=data), status, headers)


async def _qa_failure(application: Application, builder: Builder, number: int) -> str:
    """Return what the gate's failed checks say of the version."""
    report = await application.store.read(lambda uow: uow.qa_reports.get(builder.id, number))
    return gate_failure(report.gate) if report is not None else ""


def _message(builder: Builder, url: str, qa_failure: str) -> str:
    match builder.status:
        case Status.RUNNING if builder.job_type is JobType.ONE_TIME:
            return f"The job {builder.name} has started."
        case Status.RUNNING if builder.job_type is JobType.WORKER:
            return f"The worker {builder.name} is running."
        case Status.RUNNING if builder.job_type is JobType.SANDBOX:
            return (
                f"The sandbox {builder.name} is running: POST {PREFIX}/builders/{builder.id}/exec runs a command in it."
            )
        case Status.RUNNING:
            failed = f", but failed QA: {qa_failure}" if qa_failure else ""
            return f"{builder.name} is running at {url}{failed}"
        case Status.COMPLETED:
            return f"The job {builder.name} has completed."
        case Status.FAILED:
            return f"{builder.name} has failed: {builder.status_reason}"
        case _:
            return f"{builder.name} is {builder.status}."
