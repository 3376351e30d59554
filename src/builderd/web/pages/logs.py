"""Logs: the last lines as a page, all of them as a stream in batches, and as a file."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from builderd.api.server.streams import event, stream
from builderd.domain.sandboxes import LogStream
from builderd.services import logs
from builderd.web.pages.builder import builder_page, frame_of
from builderd.web.policy import check_origin
from builderd.web.visits import Visit, page, route, visit_of

#: Lines of the page itself, which needs no script; and of the stream, which begins further back.
SHOWN, TAIL = 300, 100_000
#: Lines in one event, and seconds that a line may wait for others.
BATCH, WAIT_SECONDS = 400, 0.1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PLACE = re.compile(r"(\d{1,18})-(\d{1,9})")
STREAMS = {stream.value: stream for stream in LogStream}


def _search_of(visit: Visit) -> str:
    return visit.request.query_params.get("q", "")[:200]


def _filter_of(visit: Visit, tail: int | None, since: datetime | None = None) -> logs.LogFilter:
    stream = STREAMS.get(visit.request.query_params.get("stream", ""))
    return logs.LogFilter(tail, since, stream, _search_of(visit))


async def _read_lines(visit: Visit, builder_id: str, tail: int) -> AsyncGenerator[logs.VersionedLine]:
    tenant, pages = visit.token.tenant_id, visit.operations.paged_reads
    return await logs.read(visit.application, tenant, builder_id, _filter_of(visit, tail), pages)


@page("/builders/{name}/logs")
async def show_logs(visit: Visit) -> Response:
    """Show the last lines; the page's script goes on from there."""
    frame = await visit.read(lambda uow: frame_of(uow, visit))
    lines = [line async for line in await _read_lines(visit, frame.builder.id, SHOWN)]
    stream_name = visit.request.query_params.get("stream", "")
    return await builder_page(
        visit,
        "logs.html",
        "logs",
        frame,
        lines=lines,
        q=_search_of(visit),
        stream=stream_name if stream_name in STREAMS else "",
        streams=(("", "All"), ("stdout", "Output"), ("stderr", "Errors"), ("build", "Build"), ("release", "Release")),
    )


@route("/builders/{name}/logs/stream")
async def stream_logs(request: Request) -> Response:
    """Send the last lines and then each as it is written, in batches: [microseconds, stream, version, text]."""
    check_origin(request)
    visit = await visit_of(request)
    builder = await visit.find()
    listeners = visit.operations.log_streams
    listeners.admit(visit.token.tenant_id)
    place = PLACE.fullmatch(request.headers.get("last-event-id", ""))
    lines = _batches(visit, builder.id, (int(place[1]), int(place[2])) if place else None)

    async def counted() -> AsyncGenerator[bytes]:
        with listeners.slot(visit.token.tenant_id):
            async with aclosing(lines):
                async for batch in lines:
                    yield batch

    return stream(counted(), permitted=visit.is_good_still)


async def _batches(visit: Visit, builder_id: str, after: tuple[int, int] | None) -> AsyncGenerator[bytes]:
    since = EPOCH + timedelta(microseconds=after[0]) if after else None
    followed = logs.follow(
        visit.application,
        visit.token.tenant_id,
        builder_id,
        _filter_of(visit, None if after else TAIL, since),
        visit.operations.paged_reads,
    )
    queue: asyncio.Queue[logs.FollowedLine | None] = asyncio.Queue(2 * BATCH)
    reading = asyncio.create_task(_read(followed, queue))
    try:
        while True:
            batch, ended = await _next_batch(queue)
            rows = [_row(line) for line in batch if after is None or _place(line) > after]
            if rows:
                yield event(
                    "lines",
                    json.dumps(rows, ensure_ascii=False, separators=(",", ":")),
                    "{}-{}".format(*_place(batch[-1])),
                )
            if ended:
                yield event("done", {})
                return
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _read(followed: AsyncGenerator[logs.FollowedLine], queue: asyncio.Queue[logs.FollowedLine | None]) -> None:
    try:
        async with aclosing(followed):
            async for line in followed:
                await queue.put(line)
    finally:
        await queue.put(None)


async def _next_batch(queue: asyncio.Queue[logs.FollowedLine | None]) -> tuple[list[logs.FollowedLine], bool]:
    """Return the next lines, at least one, and whether the log has ended."""
    first = await queue.get()
    if first is None:
        return [], True
    batch = [first]
    deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
    while len(batch) < BATCH:
        try:
            async with asyncio.timeout_at(deadline):
                line = await queue.get()
        except TimeoutError:
            break
        if line is None:
            return batch, True
        batch.append(line)
    return batch, False


def _place(line: logs.FollowedLine) -> tuple[int, int]:
    return (line.line.time - EPOCH) // timedelta(microseconds=1), line.nth


def _row(line: logs.FollowedLine) -> list[object]:
    return [_place(line)[0], line.line.stream.value, line.version, line.line.text]


@page("/builders/{name}/logs/download")
async def download(visit: Visit) -> Response:
    """Return the last lines as a text file."""
    builder = await visit.find()
    found = await _read_lines(visit, builder.id, TAIL)

    async def text() -> AsyncGenerator[str]:
        async with aclosing(found):
            async for line in found:
                yield f"{line.line.time.isoformat()} {line.line.stream.value} {line.line.text}\n"

    headers = {"Content-Disposition": f'attachment; filename="{builder.name}.log"'}
    return StreamingResponse(text(), 200, headers, "application/octet-stream")
