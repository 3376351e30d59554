"""Builders: create, list, look, start, stop, restart, delete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import Field

from builderd.application import Application
from builderd.backups import service as backups
from builderd.builders import outcomes
from builderd.builders import presenters as door
from builderd.builders import service as builders
from builderd.builders.model import Builder, JobType, Status
from builderd.builders.presenters import present_builder
from builderd.builders.store import BuilderQuery
from builderd.core.errors import BuilderdError, machine_fault
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import Event
from builderd.schemas.builders import MAX_INTEGER, BuilderAnswer, BuilderPage, Name, NewBuilder
from builderd.schemas.shape import PageMeta, Parameters
from builderd.server import openapi, requests
from builderd.server.answers import PREFIX, Answer, failure
from builderd.server.auth import Identity, Reader, TheApplication, TheOperations, Writer
from builderd.server.bodies import Received, json_body
from builderd.server.pages import MAX_PER_PAGE, Listing, listed, page_of, single
from builderd.server.preferences import (
    count_blocking_call,
    retry_of,
    until_disconnect,
    wants_async,
    wants_events,
)
from builderd.server.streams import event, stream
from builderd.tokens.model import Scope

router = APIRouter(prefix=PREFIX, tags=[openapi.BUILDERS])

#: In any case of letters: RFC 9562 wants both to be taken.
Uuid = Annotated[str, Path(description="The builder's uuid.", json_schema_extra={"format": "uuid"})]


class ListQuery(Parameters):
    """A filter that is misspelt would let everything through, so nothing unknown is taken."""

    page: int = Field(default=1, ge=1, le=MAX_INTEGER)
    per_page: int = Field(default=25, ge=1, le=MAX_PER_PAGE)
    name: Name | None = None
    search: str | None = Field(default=None, max_length=63, description="Those with this part of a name.")
    status: Status | None = None
    job_type: JobType | None = None
    sort: Literal["created_at", "-created_at", "-updated_at", "name"] = "-created_at"


@router.get("/builders", responses=openapi.answers(200, BuilderPage, "A page of them.", 422))
async def list_builders(
    request: Request, application: TheApplication, identity: Reader, query: Annotated[ListQuery, Query()]
) -> Response:
    """Your builders, the newest first unless sorted otherwise."""
    now = application.clock.now()

    async def listing() -> Listing:
        asked, tenant = BuilderQuery(**query.model_dump()), identity.token.tenant_id
        views, total = await application.store.read(
            lambda uow: builders.list_page(uow, application, tenant, asked, now)
        )
        meta = PageMeta(page=query.page, per_page=query.per_page, total=total)
        entries = (present_builder(view, with_token=identity.may_write) for view in views)
        return page_of(f"{len(views)} of {total} builders.", meta, entries)

    return await listed(request, identity.token.tenant_id, listing)


@router.get("/builders/{uuid}", responses=openapi.answers(200, BuilderAnswer, "The builder.", 404))
async def get_builder(request: Request, application: TheApplication, identity: Reader, uuid: Uuid) -> Response:
    """One builder."""
    now = application.clock.now()

    def load(uow: UnitOfWork) -> builders.BuilderView:
        builder = builders.get(uow, identity.token.tenant_id, uuid.lower())
        return builders.view(uow, application, builder, now)

    async def listing() -> Listing:
        data = present_builder(await application.store.read(load), with_token=identity.may_write)
        return single(f"{data.name} is {data.status}.", data)

    return await listed(request, identity.token.tenant_id, listing)


class DeleteQuery(Parameters):
    """``purge``: its backups go with it, and no last one is taken."""

    purge: bool = False


class RestartQuery(Parameters):
    """``process``: only this process of the app, such as ``worker``."""

    process: str = Field(default="", max_length=63)


#: What the calls that change what is wanted have in common.
CHANGE: dict[str, Any] = {"openapi_extra": {"parameters": [openapi.PREFER]}}


class Action(NamedTuple):
    """Command on a builder, its name in the message of a 202, and the wait for its outcome."""

    command: builders.Command
    doing: str
    outcome: Callable[[Application, Builder], Coroutine[Any, Any, Answer]]


START = Action(builders.start, "started", door.started)
RESTART = Action(builders.restart, "restarted", door.started)
STOP = Action(builders.stop, "stopped", door.ended)


@router.post(
    "/builders/{uuid}/start",
    **CHANGE,
    responses=openapi.answers(200, BuilderAnswer, "It runs.", 404, 409, 422, later="It is being started.", stages=True),
)
async def start_builder(request: Request, application: TheApplication, identity: Writer, uuid: Uuid) -> Response:
    """Start it. A builder that runs already stays as it is."""
    return await _answered(request, application, identity, uuid, START)


@router.post(
    "/builders/{uuid}/restart",
    **CHANGE,
    responses=openapi.answers(
        200, BuilderAnswer, "It runs anew.", 404, 409, 422, later="It is being restarted.", stages=True
    ),
)
async def restart_builder(
    request: Request,
    application: TheApplication,
    identity: Writer,
    uuid: Uuid,
    query: Annotated[RestartQuery, Query()],
) -> Response:
    """Stop it if it runs, and start it: all of it, or one process of an app that runs, which is answered at once."""
    action = RESTART
    if query.process:
        command = partial(builders.restart_process, process=query.process)
        action = Action(command, "restarted", door.started)
    return await _answered(request, application, identity, uuid, action)


@router.post(
    "/builders/{uuid}/stop",
    **CHANGE,
    responses=openapi.answers(200, BuilderAnswer, "It is stopped.", 404, later="It is being stopped."),
)
async def stop_builder(request: Request, application: TheApplication, identity: Writer, uuid: Uuid) -> Response:
    """Stop it; its files and settings are kept. A builder that is stopped already stays as it is."""
    return await _answered(request, application, identity, uuid, STOP)


@router.delete(
    "/builders/{uuid}",
    **CHANGE,
    responses=openapi.answers(200, BuilderAnswer, "It is gone.", 404, 422, later="It is being deleted."),
)
async def delete_builder(
    request: Request, application: TheApplication, identity: Writer, uuid: Uuid, query: Annotated[DeleteQuery, Query()]
) -> Response:
    """Stop it and remove it with its files, from any state. Its backups stay for some days unless they are purged."""
    delete = Action(partial(backups.delete_builder, purge=query.purge), "deleted", door.ended)
    return await _answered(request, application, identity, uuid, delete)


async def _answered(
    request: Request, application: Application, identity: Identity, uuid: str, action: Action
) -> Response:
    now = application.clock.now()
    with count_blocking_call(request, identity):
        builder = await application.commit(
            lambda uow: action.command(uow, application, identity.caller, uuid.lower(), now)
        )
        if wants_async(request):
            return (await door.accepted(application, builder, action.doing)).response()
        return (await until_disconnect(request, action.outcome(application, builder))).response()


#: Largest request body in bytes: room for 20 MB of files in base64, their 2,000 paths, and the settings.
MAX_BODY_BYTES = 29_000_000

Body = Annotated[Received[NewBuilder], Depends(json_body(NewBuilder, MAX_BODY_BYTES))]

EXAMPLE = {
    "name": "hello",
    "entrypoint": "python3 -m http.server $PORT",
    "files": {"index.html": "<h1>Hello</h1>"},
    "port": 8000,
    "env": {"MY_FLAG": "1"},
    "resources": {"cpu": 1, "memory": 1, "disk": 3},
}
STREAM = (
    "An event per finished stage (`review`, `install`, `build`, `release`, `start`, `qa`) with "
    "its seconds, then `done` (the builder) or `failed`."
)


@router.post(
    "/builders",
    status_code=201,
    responses={
        200: {
            "description": f"With `Accept: text/event-stream`. {STREAM}",
            "content": openapi.events(STREAM),
            "headers": openapi.LOCATION,
        },
        **openapi.answer(201, BuilderAnswer, "It is up.", headers=openapi.LOCATION),
        **openapi.answer(202, BuilderAnswer, "It is being created.", headers=openapi.LOCATION),
        **openapi.failures(400, 401, 403, 404, 409, 413, 422, stages=True),
    },
    openapi_extra={
        "parameters": [openapi.PREFER, openapi.IDEMPOTENCY_KEY],
        **openapi.body_of(NewBuilder, EXAMPLE),
    },
)
async def create_builder(request: Request, operations: TheOperations, identity: Writer, body: Body) -> Response:
    """Turn code into a running, isolated app with a live URL.

    The answer comes when the app is up, or when a stage has failed: the builder is then kept in `failed`.
    A failed call can be answered 404 only where its builder was deleted meanwhile.
    """
    check_gates(identity, body.value)
    retry = retry_of(request, identity.token.tenant_id, body.sha256)
    first = await operations.retries.first(retry)
    if isinstance(first, Answer):
        return in_form(request, first)
    at_once = wants_async(request)
    with operations.begin(identity.token.tenant_id, retry, blocks=not at_once) as in_progress:
        if first is None:
            bundle = await requests.bundle_of(operations.application, identity.token.tenant_id, body.value)
            asked = await requests.new_builder(operations.application, body.value, bundle)
            builder = await operations.create(identity.caller, asked, bundle, retry)
        else:
            builder = (await operations.begun(first)).builder
        body.release()
        if at_once:
            outcome = door.accepted(operations.application, builder, "created")
        else:
            outcome = door.started(operations.application, builder, 201, door.location(builder))
        answer = operations.follow(outcome, retry, in_progress)
    if wants_events(request) and not at_once:
        events = outcomes.stages(operations.application, builder.id, builder.generation)
        return stream(progress_stream(events, answer), door.location(builder))
    return (await asyncio.shield(answer)).response()


def check_gates(identity: Identity, new: NewBuilder) -> None:
    """Raise ``Forbidden`` when the request leaves a gate out and the token lacks the scope for it."""
    if new.skip_review or new.skip_qa:
        identity.require(Scope.SKIP_GATES, "Leaving a gate out (skip_review, skip_qa)")


def in_form(request: Request, answer: Answer) -> Response:
    """Return an answer that is known already, in the form that the call asks for."""
    if wants_events(request) and not wants_async(request):
        return stream(_last_event(answer), answer.headers)
    return answer.response()


async def _last_event(answer: Answer) -> AsyncGenerator[bytes]:
    yield _final(answer)


async def progress_stream(events: AsyncIterator[Event], answer: asyncio.Task[Answer]) -> AsyncGenerator[bytes]:
    """Yield the stages as they end, then the answer."""
    try:
        async for happened in events:
            if happened.type == "stage.finished":
                yield event(happened.details["stage"], dict(happened.details), str(happened.id))
        last = await asyncio.shield(answer)
    except Exception as error:
        fault = error if isinstance(error, BuilderdError) else machine_fault(error)
        if fault is None:
            raise
        last = failure(fault)
    yield _final(last)


def _final(answer: Answer) -> bytes:
    return event("done", answer.body["data"]) if answer.ok else event("failed", answer.body)
