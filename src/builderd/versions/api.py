"""Versions: deploy one, change settings, go back to an old one, list them; the old serves until the new does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from builderd.application import Application
from builderd.builders import outcomes
from builderd.builders import presenters as door
from builderd.builders import service as builders
from builderd.builders.api import CHANGE, MAX_BODY_BYTES, Uuid, check_gates, in_form, progress_stream
from builderd.builders.model import Builder, Desired
from builderd.builders.service import Caller
from builderd.code import service as bundles
from builderd.core.errors import NotFound
from builderd.core.ids import BuilderId
from builderd.database.unit_of_work import UnitOfWork
from builderd.schemas import versions as wire
from builderd.schemas.builder_parts import RemovedBuilds
from builderd.schemas.builders import MAX_INTEGER, BuilderAnswer
from builderd.schemas.shape import Parameters, Success
from builderd.schemas.versions import (
    NewAutoStop,
    NewRollback,
    NewSettings,
    NewVersion,
    VersionPage,
    given_fields,
    shown_settings,
)
from builderd.server import openapi, requests
from builderd.server.answers import PREFIX, Answer, failure, success
from builderd.server.auth import Identity, Reader, TheApplication, TheOperations, Writer, operations_of
from builderd.server.bodies import Received, json_body
from builderd.server.idempotency import Retry
from builderd.server.operations import Operations, sent_by
from builderd.server.pages import Listing, ThePage, listed, page_of
from builderd.server.preferences import (
    count_blocking_call,
    retry_of,
    until_disconnect,
    wants_async,
    wants_events,
)
from builderd.server.streams import stream
from builderd.versions import service as deployments
from builderd.versions.model import Version
from builderd.versions.service import Change, Deployed

router = APIRouter(prefix=PREFIX, tags=[openapi.BUILDERS])

#: Room for the environment and the rest of the settings.
MAX_SETTINGS_BYTES = 2_500_000
MAX_SMALL_BYTES = 100_000

VersionBody = Annotated[Received[NewVersion], Depends(json_body(NewVersion, MAX_BODY_BYTES))]
SettingsBody = Annotated[Received[NewSettings], Depends(json_body(NewSettings, MAX_SETTINGS_BYTES))]
AutoStopBody = Annotated[Received[NewAutoStop], Depends(json_body(NewAutoStop, MAX_SMALL_BYTES))]
RollbackBody = Annotated[Received[NewRollback], Depends(json_body(NewRollback, MAX_SMALL_BYTES))]

STREAM = "An event per finished stage with its seconds, if there are any, then `done` (the builder) or `failed`."
AT_ONCE_STREAM = "`done` (the builder) or `failed`: there are no stages."
T = TypeVar("T")


class DeployQuery(Parameters):
    """``fresh``: its dependencies are installed again, without the layer that was made before."""

    fresh: bool = False


def _responses(served: str) -> dict[int | str, dict[str, Any]]:
    on_200 = f"{served} With `Accept: text/event-stream`: {STREAM}"
    return {
        **openapi.answer(200, BuilderAnswer, on_200, content=openapi.events(STREAM)),
        **openapi.answer(202, BuilderAnswer, "It is being deployed.", headers=openapi.LOCATION),
        **openapi.failures(400, 401, 403, 404, 409, 413, 422, 429, stages=True),
    }


def _extra(shape: type[Any], example: dict[str, Any]) -> dict[str, Any]:
    return {"parameters": [openapi.PREFER, openapi.IDEMPOTENCY_KEY], **openapi.body_of(shape, example)}


@router.put(
    "/builders/{uuid}",
    responses=_responses("The new version serves."),
    openapi_extra=_extra(
        NewVersion, {"entrypoint": "python3 -m http.server $PORT", "files": {"index.html": "<h1>New</h1>"}}
    ),
)
async def put_builder(
    request: Request,
    operations: TheOperations,
    identity: Writer,
    uuid: Uuid,
    body: VersionBody,
    query: Annotated[DeployQuery, Query()],
) -> Response:
    """Deploy a new version: the old one serves until the new one does, and continues serving when that fails.

    A builder that is stopped is started with it.
    """
    check_gates(identity, body.value)

    async def deploy(retry: Retry | None) -> Deployed:
        change, bundle = await requests.new_version(
            operations.application, identity.caller, uuid.lower(), body.value, fresh=query.fresh
        )
        record = _recording(deployments.deploy, operations.application, identity, uuid, change)
        deployed = await operations.change(uuid.lower(), record, retry, sent_by(identity.caller, bundle))
        body.release()
        return deployed

    return await _answered(request, operations, identity, body.sha256, deploy)


@router.patch(
    "/builders/{uuid}",
    responses=_responses("The settings are in force."),
    openapi_extra=_extra(NewSettings, {"env": {"MY_FLAG": "2"}}),
)
async def patch_builder(
    request: Request, operations: TheOperations, identity: Writer, uuid: Uuid, body: SettingsBody
) -> Response:
    """Change settings: at once where the app need not know of them, else as a new version of the same code."""
    return await _configured(request, operations, identity, uuid, body.sha256, Change.of(given_fields(body.value)))


@router.put(
    "/builders/{uuid}/auto-stop",
    responses=openapi.answers(
        200, BuilderAnswer, "It is set.", 400, 404, 409, 413, 422, content=openapi.events(AT_ONCE_STREAM)
    ),
    openapi_extra=openapi.body_of(NewAutoStop, {"interval": 15}),
)
async def put_auto_stop(
    request: Request, operations: TheOperations, identity: Writer, uuid: Uuid, body: AutoStopBody
) -> Response:
    """Set after how many minutes without use the builder stops by itself."""
    change = Change(auto_stop_interval=body.value.interval)
    return await _configured(request, operations, identity, uuid, body.sha256, change)


@router.post(
    "/builders/{uuid}/rollback",
    responses=_responses("The old code serves again, as a new version."),
    openapi_extra=_extra(NewRollback, {"version": 1}),
)
async def roll_back(
    request: Request, operations: TheOperations, identity: Writer, uuid: Uuid, body: RollbackBody
) -> Response:
    """Deploy the code and the settings of an old version again, as a new version. What the app wrote stays."""
    record = _recording(deployments.roll_back, operations.application, identity, uuid, body.value.version)

    async def deploy(retry: Retry | None) -> Deployed:
        return await operations.change(uuid.lower(), record, retry)

    return await _answered(request, operations, identity, body.sha256, deploy)


@router.get("/builders/{uuid}/versions", responses=openapi.answers(200, VersionPage, "A page of them.", 404, 422))
async def list_versions(
    request: Request, application: TheApplication, identity: Reader, uuid: Uuid, query: ThePage
) -> Response:
    """List the versions that are kept, the newest first: deployed, failed, and the one that is being deployed."""
    now = application.clock.now()

    def load(uow: UnitOfWork) -> list[wire.Version]:
        builder = builders.get(uow, identity.token.tenant_id, uuid.lower())
        return [_present(builder, one, now) for one in deployments.list_of(uow, identity.caller, builder.id)]

    async def listing() -> Listing:
        found = await application.store.read(load)
        message = f"{len(found)} version{'' if len(found) == 1 else 's'}."
        return page_of(message, query.of(len(found)), query.cut(found))

    return await listed(request, identity.token.tenant_id, listing)


Number = Annotated[int, Path(ge=1, le=MAX_INTEGER, description="A version that is kept.")]


@router.get(
    "/builders/{uuid}/versions/{old}/diff/{new}",
    responses=openapi.answers(200, Success[wire.VersionDiff], "By path, and by name.", 404, 422),
)
async def diff_versions(
    request: Request, application: TheApplication, identity: Reader, uuid: Uuid, old: Number, new: Number
) -> Response:
    """Compare the files and the settings of two versions."""
    async with operations_of(request).lists.one(identity.token.tenant_id):
        found = await bundles.compare(application, identity.caller, uuid.lower(), old, new)
    count = len(found.files)
    message = f"{count} file{'' if count == 1 else 's'} and {len(found.settings)} settings differ."
    return success(Success[wire.VersionDiff](message=message, data=_difference(found))).response()


@router.get(
    "/builders/{uuid}/versions/{old}/patch/{new}",
    responses={
        200: {
            "description": "A patch that `git apply` takes.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **openapi.failures(401, 403, 404, 422),
    },
)
async def patch_versions(
    request: Request, application: TheApplication, identity: Reader, uuid: Uuid, old: Number, new: Number
) -> Response:
    """Return the difference between the files of two versions as a unified patch; binary and long files are named."""
    async with operations_of(request).lists.one(identity.token.tenant_id):
        text = await bundles.patch(application, identity.caller, uuid.lower(), old, new)
    headers = {"Content-Disposition": f'attachment; filename="{old}-{new}.patch"', "X-Content-Type-Options": "nosniff"}
    return Response(text, 200, headers, "text/plain")


def _difference(found: bundles.VersionDiff) -> wire.VersionDiff:
    shown = (shown_settings(one.settings, wire.Version) for one in (found.old, found.new))
    before, after = shown
    return wire.VersionDiff(
        old=found.old.number,
        new=found.new.number,
        files=[wire.FileDifference.of(one) for one in found.files],
        settings=[
            wire.SettingDifference(name=name, old=before[name], new=after[name]) for name, _, _ in found.settings
        ],
    )


@router.post(
    "/builders/{uuid}/service-token",
    **CHANGE,
    responses={
        **openapi.answer(200, BuilderAnswer, "The new token is in force, also in the app."),
        **openapi.answer(202, BuilderAnswer, "The new token is in force; the app is about to have it."),
        **openapi.failures(401, 403, 404, 409, 422, stages=True),
    },
)
async def renew_service_token(request: Request, application: TheApplication, identity: Writer, uuid: Uuid) -> Response:
    """Make a new service token; the old one ends. A running app is started again with it, while requests wait."""

    def renew(uow: UnitOfWork) -> Builder:
        return deployments.renew_service_token(uow, application, identity.caller, uuid.lower(), application.clock.now())

    with count_blocking_call(request, identity):
        builder = await outcomes.after_take_over(
            application, BuilderId(uuid.lower()), lambda: application.commit(renew)
        )
        await outcomes.wait_until_reachable(application, builder)
        if wants_async(request):
            return (await door.accepted(application, builder, "given a new token")).response()
        outcome = door.started if builder.desired is Desired.RUNNING else door.ended
        return (await until_disconnect(request, outcome(application, builder))).response()


# What deploying calls have in common


async def _configured(
    request: Request, operations: Operations, identity: Identity, uuid: str, body_sha256: str, change: Change
) -> Response:
    record = _recording(deployments.configure, operations.application, identity, uuid, change)

    async def deploy(retry: Retry | None) -> Deployed:
        return await operations.change(uuid.lower(), record, retry)

    return await _answered(request, operations, identity, body_sha256, deploy)


def _recording(
    command: Callable[[UnitOfWork, Application, Caller, str, T, datetime], Deployed],
    application: Application,
    identity: Identity,
    uuid: str,
    argument: T,
) -> Callable[[UnitOfWork], Deployed]:
    """Return the service's command on this builder, ready for a unit of work."""
    caller = identity.caller
    return lambda uow: command(uow, application, caller, uuid.lower(), argument, application.clock.now())


async def _answered(
    request: Request,
    operations: Operations,
    identity: Identity,
    body_sha256: str,
    deploy: Callable[[Retry | None], Awaitable[Deployed]],
) -> Response:
    """Deploy, unless a call with the same retry key did; answer at once, at the end, or stage by stage."""
    retry = retry_of(request, identity.token.tenant_id, body_sha256)
    first = await operations.retries.first(retry)
    if isinstance(first, Answer):
        return in_form(request, first)
    application, at_once = operations.application, wants_async(request)
    with operations.begin(identity.token.tenant_id, retry, blocks=not at_once) as in_progress:
        deployed = await (deploy(retry) if first is None else operations.begun(first))
        answer = operations.follow(_outcome(application, deployed, at_once=at_once), retry, in_progress)
    if deployed.version is None:
        return in_form(request, await asyncio.shield(answer))
    if wants_events(request) and not at_once:
        events = outcomes.deployment_stages(application, deployed.builder.id, deployed.version)
        return stream(progress_stream(events, answer), door.location(deployed.builder))
    return (await asyncio.shield(answer)).response()


async def _outcome(application: Application, deployed: Deployed, *, at_once: bool) -> Answer:
    """Return the answer of a deployment. Raises errors that are no outcome, such as ``StoreUnavailable``."""
    builder = deployed.builder
    if deployed.version is not None:
        if at_once:
            return await door.accepted(application, builder, "deployed")
        try:
            builder = await outcomes.deployed(application, builder.id, deployed.version)
        except outcomes.FAILED as error:
            return failure(error)
    await outcomes.wait_until_reachable(application, builder)
    if builder.desired is Desired.DELETED:
        return failure(NotFound("The builder was deleted in the meantime.", data={"uuid": builder.id}))
    return await door.shown_as(application, builder)


def _present(builder: Builder, version: Version, now: datetime) -> wire.Version:
    return wire.Version.of(
        version,
        version=version.number,
        current=version.number == builder.version,
        bundle=version.bundle_hash,
        **shown_settings(version.settings, wire.Version) | {"port": version.port},
        review_passed=version.reviewed(now),
    )


@router.delete(
    "/builders/{uuid}/build-cache", responses=openapi.answers(200, Success[RemovedBuilds], "They are removed.", 404)
)
async def clear_build_cache(application: TheApplication, identity: Writer, uuid: Uuid) -> Response:
    """Remove the kept results of the builds of its versions, which count for your layers.

    A version that runs or is stopped keeps its files. A rollback to another version builds it again.
    """
    results, size = await deployments.remove(application, identity.caller, uuid.lower())
    data = RemovedBuilds(results=results, bytes=size)
    message = f"{results} results of builds are removed."
    return success(Success[RemovedBuilds](message=message, data=data)).response()
