"""Events: a page of them, or each as it happens."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from builderd.api import openapi
from builderd.api.server.auth import Identity, Reader, TheApplication, is_good_still, operations_of
from builderd.api.server.paths import PREFIX
from builderd.api.server.streams import event, stream
from builderd.api.v1.builders import Uuid
from builderd.api.v1.pages import MAX_PER_PAGE, Listing, listed, page_of
from builderd.domain.errors import ValidationFailed
from builderd.domain.events import Event, is_pattern
from builderd.domain.ids import BuilderId, TenantId
from builderd.operations.operations import Operations
from builderd.schemas.v1 import logs as wire
from builderd.schemas.v1.builders import MAX_INTEGER
from builderd.schemas.v1.shape import PageMeta, Parameters, UtcTime, checked_by
from builderd.services import builders, events
from builderd.services.application import Application
from builderd.store.events import EventQuery

router = APIRouter(prefix=PREFIX, tags=[openapi.WATCHING])

MAX_TYPES = 1_000
EVENT_ID = re.compile(r"\d{1,18}", re.ASCII)
PATTERN = r"[a-z][a-z_]*(\.[a-z_]+)*(\.\*)?"
STREAM = "With `follow`: an event per event, named by its type. Its id is taken as `Last-Event-ID`."


def _patterns(text: str) -> str | None:
    wrong = [one for one in text.split(",") if not is_pattern(one)]
    return f"must be types such as builder.status or builder.*, with commas, unlike {wrong[0]!r}" if wrong else None


class EventsQuery(Parameters):
    """Filters and page of a list of events."""

    page: int = Field(default=1, ge=1, le=MAX_INTEGER)
    per_page: int = Field(default=25, ge=1, le=MAX_PER_PAGE)
    type: Annotated[str, checked_by(_patterns)] | None = Field(
        default=None,
        max_length=MAX_TYPES,
        description="Types, with commas; `builder.*` for all below a word.",
        json_schema_extra={"pattern": rf"^(\*|{PATTERN})(,{PATTERN})*$"},
    )
    since: UtcTime | None = Field(default=None, description="None from before this time.")
    until: UtcTime | None = Field(default=None, description="Only those from before this time.")
    follow: bool = Field(
        default=False,
        description="Go on with each as it happens, as an event stream: from now on, from `since`, or after "
        "`Last-Event-ID`.",
    )

    def filters(self, builder: BuilderId | None) -> EventQuery:
        return EventQuery(builder, self.type.split(",") if self.type else (), self.since, self.until)


DOCUMENTED: dict[str, Any] = {
    "openapi_extra": {"parameters": [openapi.LAST_EVENT_ID]},
}


@router.get(
    "/events",
    **DOCUMENTED,
    responses=openapi.answers(200, wire.EventPage, "A page of them.", 422, 429, content=openapi.events(STREAM)),
)
async def list_events(
    request: Request, application: TheApplication, identity: Reader, query: Annotated[EventsQuery, Query()]
) -> Response:
    """List the events of your builders, deleted ones included, the newest first."""
    return await _answer(request, application, identity, query, None)


@router.get(
    "/builders/{uuid}/events",
    **DOCUMENTED,
    responses=openapi.answers(200, wire.EventPage, "A page of them.", 404, 422, 429, content=openapi.events(STREAM)),
)
async def list_builder_events(
    request: Request,
    application: TheApplication,
    identity: Reader,
    uuid: Uuid,
    query: Annotated[EventsQuery, Query()],
) -> Response:
    """List the events of one builder, the newest first."""
    tenant_id = identity.token.tenant_id
    builder = await application.store.read(lambda uow: builders.get(uow, tenant_id, uuid.lower()))
    return await _answer(request, application, identity, query, builder.id)


async def _answer(
    request: Request, application: Application, identity: Identity, query: EventsQuery, builder: BuilderId | None
) -> Response:
    if query.since and query.until and query.since >= query.until:
        raise ValidationFailed({"until": ["must be later than since"]})
    tenant_id, filters = identity.token.tenant_id, query.filters(builder)
    if query.follow:
        return await _stream(request, application, identity, filters)

    async def listing() -> Listing:
        found, total = await application.store.read(
            lambda uow: uow.events.page(tenant_id, filters, page=query.page, per_page=query.per_page)
        )
        meta = PageMeta(page=query.page, per_page=query.per_page, total=total)
        return page_of(f"{len(found)} of {total} events.", meta, map(present_event, found))

    return await listed(request, tenant_id, listing)


# Following


async def _stream(request: Request, application: Application, identity: Identity, query: EventQuery) -> Response:
    if query.until is not None:
        raise ValidationFailed({"until": ["cannot be had with follow, which goes on as long as you listen"]})
    operations = operations_of(request)
    tenant_id = identity.token.tenant_id
    operations.event_streams.admit(tenant_id)
    after = await events.start_after(application, tenant_id, query, _given(request))
    followed = _followed(operations, tenant_id, query, after)
    return stream(followed, permitted=partial(is_good_still, application, identity))


def _given(request: Request) -> int | None:
    """Return the event after which an interrupted stream resumes. To begin elsewhere instead would lose events."""
    text = request.headers.get("last-event-id", "")
    if not text:
        return None
    if not EVENT_ID.fullmatch(text):
        raise ValidationFailed({"Last-Event-ID": ["must be the id of an event, or left out"]})
    return int(text)


async def _followed(
    operations: Operations, tenant_id: TenantId, query: EventQuery, after: int
) -> AsyncGenerator[bytes]:
    pages = operations.paged_reads
    with operations.event_streams.hold(tenant_id):
        async with aclosing(events.follow(operations.application, tenant_id, query, after, pages)) as followed:
            async for one in followed:
                yield event(one.type, present_event(one).model_dump_json(), str(one.id))


def present_event(event: Event) -> wire.Event:
    """Return the event in the contract's shape."""
    return wire.Event(
        id=event.id,
        time=event.time,
        type=event.type,
        builder=event.builder_id,
        actor=event.actor,
        reason=event.reason,
        details=dict(event.details),
    )
