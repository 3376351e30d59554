"""Logs and events of builders: a page, or each as it happens."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from builderd.application import Application
from builderd.builders import processes
from builderd.builders import service as builders
from builderd.builders.api import Uuid
from builderd.core.errors import ValidationFailed
from builderd.core.ids import BuilderId, TenantId
from builderd.database.unit_of_work import UnitOfWork
from builderd.events import service as events
from builderd.events.model import Event, is_pattern
from builderd.events.store import EventQuery
from builderd.logs import service as logs
from builderd.logs.service import LogFilter, LogPosition
from builderd.sandboxes.model import LogStream
from builderd.schemas import monitoring as wire
from builderd.schemas.builders import MAX_INTEGER
from builderd.schemas.monitoring import LogAnswer, LogLine
from builderd.schemas.shape import Page, PageMeta, Parameters, Success, UtcTime, checked_by
from builderd.server import openapi
from builderd.server.answers import PREFIX, success
from builderd.server.auth import Identity, Reader, TheApplication, is_good_still, operations_of
from builderd.server.operations import Operations
from builderd.server.pages import MAX_PER_PAGE, Listing, listed, page_of
from builderd.server.preferences import until_disconnect
from builderd.server.streams import ResourceStream, event, stream
from builderd.tokens.limits import PagedReads

router = APIRouter(prefix=PREFIX, tags=[openapi.WATCHING])

MAX_TAIL = 100_000
#: Characters of an answer that are collected before they are sent.
PIECE = 1 << 16
STREAM = "With `follow`: a `line` event per line, first the last ones."


class LogQuery(Parameters):
    """Filters of a log's lines."""

    tail: int = Field(default=200, ge=0, le=MAX_TAIL, description="At most so many lines, the last ones.")
    since: UtcTime | None = Field(default=None, description="None from before this time.")
    stream: LogStream | None = None
    search: str = Field(default="", max_length=200, description="Those with this text in them, in any case of letters.")
    process: str = Field(default="", max_length=63, description="Those of one process: web, worker, worker.2.")
    follow: bool = Field(default=False, description="Go on with each line as it is written, as an event stream.")


@router.get(
    "/builders/{uuid}/logs",
    responses=openapi.answers(200, LogAnswer, "The lines, the oldest first.", 404, 422, content=openapi.events(STREAM)),
    openapi_extra={"parameters": [openapi.LAST_EVENT_ID]},
)
async def read_logs(
    request: Request, application: TheApplication, identity: Reader, uuid: Uuid, query: Annotated[LogQuery, Query()]
) -> Response:
    """Return the output of the app and the installer, joined over restarts and versions."""
    tenant_id, uuid = identity.token.tenant_id, uuid.lower()
    if query.follow:
        return await _stream(request, application, identity, uuid, query)
    operations = operations_of(request)
    async with AsyncExitStack() as stack:
        stack.enter_context(operations.log_reads.acquire(tenant_id))
        # An error before the first piece still gets its own status. Finding the beginning of a long log takes seconds.
        wanted = await _filter_of(application, tenant_id, uuid, query)
        begun = _begun(application, tenant_id, uuid, wanted, operations.paged_reads)
        first, pieces = await until_disconnect(request, begun)
        return ResourceStream(stack.pop_all(), _joined(first, pieces), 200, {}, "application/json")


class DensityQuery(Parameters):
    """Lines that are counted, and the number of buckets."""

    buckets: int = Field(default=60, ge=1, le=500, description="From the first line to the last, of equal length.")
    tail: int = Field(default=MAX_TAIL, ge=1, le=MAX_TAIL, description="At most so many lines, the last ones.")
    since: UtcTime | None = Field(default=None, description="None from before this time.")
    stream: LogStream | None = None
    search: str = Field(default="", max_length=200, description="Those with this text in them, in any case of letters.")


@router.get(
    "/builders/{uuid}/logs/density",
    responses=openapi.answers(200, Success[wire.LogDensity], "Where lines are, over time.", 404, 422),
)
async def read_log_density(
    request: Request, application: TheApplication, identity: Reader, uuid: Uuid, query: Annotated[DensityQuery, Query()]
) -> Response:
    """Count the lines of the log over time, those that are errors, and where versions begin."""
    tenant_id, operations = identity.token.tenant_id, operations_of(request)
    wanted = LogFilter(query.tail, query.since, query.stream, query.search)
    with operations.log_reads.acquire(tenant_id):
        lines = await logs.read(application, tenant_id, uuid.lower(), wanted, operations.paged_reads)
        found = await until_disconnect(request, logs.density(lines, query.buckets))
    data = wire.LogDensity(
        lines=found.lines,
        bucket_seconds=found.step.total_seconds(),
        buckets=[wire.LogBucket.of(one) for one in found.buckets],
        versions=[wire.LogVersion(version=version, time=time) for version, time in found.versions],
    )
    return success(Success[wire.LogDensity](message=f"{found.lines} lines.", data=data)).response()


async def _begun(
    application: Application, tenant_id: TenantId, uuid: str, wanted: LogFilter, pages: PagedReads
) -> tuple[str, AsyncGenerator[str]]:
    pieces = _answer(await logs.read(application, tenant_id, uuid, wanted, pages))
    return await anext(pieces), pieces


async def _joined(first: str, others: AsyncGenerator[str]) -> AsyncGenerator[str]:
    yield first
    async with aclosing(others):
        async for piece in others:
            yield piece


async def _answer(lines: AsyncGenerator[logs.VersionedLine]) -> AsyncGenerator[str]:
    """Yield a ``LogAnswer`` piece by piece, so that little of a long log is held in memory."""
    pieces, size, count = ['{"success":true,"data":['], 0, 0
    async with aclosing(lines):
        async for line in lines:
            pieces.append(("," if count else "") + _present(line).model_dump_json())
            size, count = size + len(pieces[-1]), count + 1
            if size >= PIECE:
                yield "".join(pieces)
                pieces, size = [], 0
    yield "".join([*pieces, f'],"message":"{count} lines."}}'])


def _given(request: Request) -> LogPosition | None:
    """Return the place in ``Last-Event-ID`` where an interrupted stream resumes, None without the header.

    Raises ``ValidationFailed`` for a malformed one: to begin elsewhere instead would lose lines.
    """
    text = request.headers.get("last-event-id", "")
    if not text:
        return None
    position = LogPosition.parse(text)
    if position is None:
        raise ValidationFailed({"Last-Event-ID": ["must be the id of a line, or left out"]})
    return position


async def _stream(
    request: Request, application: Application, identity: Identity, uuid: str, query: LogQuery
) -> Response:
    operations = operations_of(request)
    tenant_id = identity.token.tenant_id
    wanted = await _filter_of(application, tenant_id, uuid, query)
    operations.log_streams.admit(tenant_id)
    followed = _followed(operations, tenant_id, uuid, wanted, _given(request))
    return stream(followed, permitted=partial(is_good_still, application, identity))


async def _followed(
    operations: Operations, tenant_id: TenantId, uuid: str, wanted: LogFilter, after: LogPosition | None
) -> AsyncGenerator[bytes]:
    wanted = replace(wanted, tail=None, since=after.time) if after else wanted
    lines = logs.follow(operations.application, tenant_id, uuid, wanted, operations.paged_reads)
    with operations.log_streams.slot(tenant_id):
        async with aclosing(lines):
            async for line in lines:
                if after is None or line.position > after:
                    yield event("line", _present(line).model_dump_json(), str(line.position))


async def _filter_of(application: Application, tenant_id: TenantId, uuid: str, query: LogQuery) -> LogFilter:
    """Return the filter that a call asks for. Raises ``NotFound``, also for a process that the app does not have."""

    def process(uow: UnitOfWork) -> str | None:
        builder = builders.get(uow, tenant_id, uuid)
        return processes.stored_name(uow, builder, query.process) if query.process else None

    stored = await application.store.read(process)
    return LogFilter(query.tail, query.since, query.stream, query.search, stored)


def _present(line: logs.VersionedLine) -> LogLine:
    return LogLine(
        time=line.line.time, stream=line.line.stream, version=line.version, text=line.line.text, process=line.process
    )


MAX_TYPES = 1_000
EVENT_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
PATTERN = r"[a-z][a-z_]*(\.[a-z_]+)*(\.\*)?"
EVENT_STREAM = "With `follow`: an event per event, named by its type. Its id is taken as `Last-Event-ID`."


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
    responses=openapi.answers(200, Page[wire.Event], "A page of them.", 422, 429, content=openapi.events(EVENT_STREAM)),
)
async def list_events(
    request: Request, application: TheApplication, identity: Reader, query: Annotated[EventsQuery, Query()]
) -> Response:
    """List the events of your builders, deleted ones included, the newest first."""
    return await _event_page(request, application, identity, query, None)


@router.get(
    "/builders/{uuid}/events",
    **DOCUMENTED,
    responses=openapi.answers(
        200, Page[wire.Event], "A page of them.", 404, 422, 429, content=openapi.events(EVENT_STREAM)
    ),
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
    return await _event_page(request, application, identity, query, builder.id)


async def _event_page(
    request: Request, application: Application, identity: Identity, query: EventsQuery, builder: BuilderId | None
) -> Response:
    if query.since and query.until and query.since >= query.until:
        raise ValidationFailed({"until": ["must be later than since"]})
    tenant_id, filters = identity.token.tenant_id, query.filters(builder)
    if query.follow:
        return await _event_stream(request, application, identity, filters)

    async def listing() -> Listing:
        found, total = await application.store.read(
            lambda uow: uow.events.page(tenant_id, filters, page=query.page, per_page=query.per_page)
        )
        meta = PageMeta(page=query.page, per_page=query.per_page, total=total)
        return page_of(f"{len(found)} of {total} events.", meta, map(present_event, found))

    return await listed(request, tenant_id, listing)


# Following


async def _event_stream(request: Request, application: Application, identity: Identity, query: EventQuery) -> Response:
    if query.until is not None:
        raise ValidationFailed({"until": ["cannot be had with follow, which goes on as long as you listen"]})
    operations = operations_of(request)
    tenant_id = identity.token.tenant_id
    operations.event_streams.admit(tenant_id)
    after = await events.start_after(application, tenant_id, query, _given_event(request))
    followed = _followed_events(operations, tenant_id, query, after)
    return stream(followed, permitted=partial(is_good_still, application, identity))


def _given_event(request: Request) -> int | None:
    """Return the event after which an interrupted stream resumes. To begin elsewhere instead would lose events."""
    text = request.headers.get("last-event-id", "")
    if not text:
        return None
    if not EVENT_NUMBER.fullmatch(text):
        raise ValidationFailed({"Last-Event-ID": ["must be the id of an event, or left out"]})
    return int(text)


async def _followed_events(
    operations: Operations, tenant_id: TenantId, query: EventQuery, after: int
) -> AsyncGenerator[bytes]:
    pages = operations.paged_reads
    with operations.event_streams.slot(tenant_id):
        async with aclosing(events.follow(operations.application, tenant_id, query, after, pages)) as followed:
            async for one in followed:
                yield event(one.type, present_event(one).model_dump_json(), str(one.id))


def present_event(event: Event) -> wire.Event:
    """Return the event in the contract's shape."""
    return wire.Event.of(event, builder=event.builder_id)
