"""Present builders in the shape of the HTTP contract, and answer calls that change their desired state."""

from __future__ import annotations

from collections.abc import Mapping

from builderd.application import Application
from builderd.backups.model import Backup, BackupStatus
from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.model import Builder, Desired, JobType, Status
from builderd.builders.service import BuilderView
from builderd.core.errors import NotFound
from builderd.qa.model import gate_failure
from builderd.schemas import builders as wire
from builderd.schemas.builders import BuilderAnswer
from builderd.schemas.versions import shown_settings
from builderd.server.answers import PREFIX, Answer, failure, success
from builderd.server.preferences import APPLIED

#: Enough of a service token to tell it from another, too little to use it.
SHOWN_END = 4


def present_builder(view: builders.BuilderView, *, with_token: bool) -> wire.Builder:
    """Return the builder in the contract's shape; its service token in full only ``with_token``."""
    builder, token = view.builder, view.builder.service_token
    return wire.Builder.of(
        builder,
        uuid=builder.id,
        preview_url=view.preview_url,
        service_token=token if with_token else f"…{token[-SHOWN_END:]}",
        **shown_settings(view.version.settings, wire.Builder) | {"port": view.version.port},
        needs_restart=view.needs_restart,
        review_passed=view.review_passed,
        qa_passed=view.version.qa_passed,
        cost=wire.Cost.of(view.cost),
        last_backup_at=view.last_good_backup.created_at if view.last_good_backup else None,
        last_backup_error=_error(view.last_backup),
        member=builder.location,
        domains=list(view.domains),
        scale=dict(builder.scale),
        process_states=[wire.ProcessState.of(one) for one in view.processes],
    )


def _error(backup: Backup | None) -> str | None:
    """Return why the last backup failed, or what damage was found in it since."""
    if backup is None or backup.is_open:
        return None
    return (backup.error if backup.status is BackupStatus.FAILED else backup.fault) or None


async def read_view(application: Application, builder: Builder) -> builders.BuilderView:
    """Return the view of the builder, with its version and its costs as they are stored now."""
    now = application.clock.now()
    return await application.store.read(lambda uow: builders.view(uow, application, builder, now))


def location(builder: Builder) -> dict[str, str]:
    """Return the ``Location`` header with the builder's path."""
    return {"Location": f"/api/v1/builders/{builder.id}"}


async def accepted(application: Application, builder: Builder, doing: str) -> Answer:
    """Return 202 at once: the work continues in the background, and the builder shows its progress."""
    data = present_builder(await read_view(application, builder), with_token=True)
    message = f"{builder.name} is being {doing}: GET {location(builder)['Location']} tells how far it is."
    return success(BuilderAnswer(message=message, data=data), 202, {**location(builder), **APPLIED})


async def started(
    application: Application, builder: Builder, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    """Wait for the outcome of the builder's present run: return the builder, or the failure of a stage.

    Raises errors that are no outcome and must not be kept as one, such as ``StoreUnavailable``.
    """
    try:
        view = await builders.view_when_settled(application, builder)
        await outcomes.raise_failure(application, view.builder, builder.generation)
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
    failed = ""
    if data.qa_passed is False:
        report = await application.store.read(lambda uow: uow.qa_reports.get(builder.id, data.version))
        failed = gate_failure(report.gate) if report is not None else ""
    return success(BuilderAnswer(message=_message(builder, data.preview_url, failed), data=data), status, headers)


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
