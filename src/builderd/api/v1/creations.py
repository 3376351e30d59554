"""Creating a builder: answered when it is up, at once, or stage by stage, and safe to be retried."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from builderd.api import openapi
from builderd.api.idempotency import first_answer, retry_of
from builderd.api.server import requests
from builderd.api.server.answers import Answer, failure
from builderd.api.server.auth import Identity, TheOperations, Writer
from builderd.api.server.bodies import Received, json_body
from builderd.api.server.paths import PREFIX
from builderd.api.server.preferences import wants_async, wants_events
from builderd.api.server.streams import event, stream
from builderd.api.v1 import outcomes as door
from builderd.domain.builders import Builder
from builderd.domain.errors import BuilderdError, machine_fault
from builderd.domain.events import Event
from builderd.domain.tokens import Scope
from builderd.operations.idempotency import Retry
from builderd.operations.operations import Operations
from builderd.schemas.v1.builders import BuilderAnswer, NewBuilder
from builderd.services import outcomes
from builderd.services.application import Application

router = APIRouter(prefix=PREFIX, tags=[openapi.BUILDERS])

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
    first = await first_answer(operations, retry)
    if isinstance(first, Answer):
        return in_form(request, first)
    at_once = wants_async(request)
    with operations.hold(identity.token.tenant_id, retry, blocks=not at_once) as held:
        # Nothing can have happened yet to a builder that this call creates.
        seen = 0 if first is None else None
        if first is None:
            builder = await _create(operations, identity, body.value, retry)
        else:
            builder = (await operations.begun(first)).builder
        body.release()
        outcome = _outcome(operations.application, builder, at_once=at_once, seen=seen)
        answer = operations.follow(outcome, retry, held)
    if wants_events(request) and not at_once:
        events = outcomes.stages(operations.application, builder.id, builder.generation)
        return stream(progress_stream(events, answer), door.location(builder))
    return (await asyncio.shield(answer)).response()


def check_gates(identity: Identity, new: NewBuilder) -> None:
    """Raise ``Forbidden`` when the request leaves a gate out and the token lacks the scope for it."""
    if new.skip_review or new.skip_qa:
        identity.require(Scope.SKIP_GATES, "Leaving a gate out (skip_review, skip_qa)")


async def _create(operations: Operations, identity: Identity, new: NewBuilder, retry: Retry | None) -> Builder:
    application = operations.application
    bundle = await requests.bundle_of(application, identity.token.tenant_id, new)
    asked = await requests.new_builder(application, new, bundle)
    return await operations.create(identity.caller, asked, bundle, retry)


async def _outcome(application: Application, builder: Builder, *, at_once: bool, seen: int | None) -> Answer:
    if at_once:
        return await door.accepted(application, builder, "created")
    return await door.created(application, builder, seen=seen)


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
                yield _stage(happened)
        last = await asyncio.shield(answer)
    except Exception as error:
        fault = error if isinstance(error, BuilderdError) else machine_fault(error)
        if fault is None:
            raise
        last = failure(fault)
    yield _final(last)


def _stage(happened: Event) -> bytes:
    return event(happened.details["stage"], dict(happened.details), str(happened.id))


def _final(answer: Answer) -> bytes:
    return event("done", answer.body["data"]) if answer.ok else event("failed", answer.body)
