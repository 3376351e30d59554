"""Logs and metrics of a builder: the last lines, all of them as a stream or a file; charts of the last hours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from functools import reduce
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from builderd.database.unit_of_work import UnitOfWork
from builderd.logs import service as logs
from builderd.logs.levels import ANSI, Level, LevelReader
from builderd.logs.service import LogPosition
from builderd.metrics import service as metrics
from builderd.metrics.model import Usage, add, response_seconds
from builderd.previews.model import STATUS_CLASSES
from builderd.sandboxes.model import LogLine, LogStream
from builderd.server.streams import event, stream
from builderd.web.pages.builder import builder_page, frame_of, read_frame
from builderd.web.policy import check_origin
from builderd.web.shown import size
from builderd.web.visits import Visit, page, route, visit_of

#: Lines of the page itself, which needs no script; those among which it looks for errors; and of the stream, which
#: begins further back.
SHOWN, LOOKED_AT, TAIL = 300, 10_000, 100_000
#: Lines in one event, and seconds that a line may wait for others.
BATCH, WAIT_SECONDS = 400, 0.1
STREAMS = {stream.value: stream for stream in LogStream}
#: Choice of the lines that are errors, of any stream.
ERRORS = "errors"
CHOICES = (
    ("", "All"),
    (ERRORS, "Errors"),
    ("stdout", "stdout"),
    ("stderr", "stderr"),
    ("build", "Build"),
    ("release", "Release"),
)


class ShownLine(NamedTuple):
    """A line as the pages show it: its text has no control sequences of terminals."""

    time: datetime
    stream: LogStream
    level: Level | None
    text: str


def shown_line(line: LogLine, reader: LevelReader) -> ShownLine:
    """Return the line with its level; ``reader`` had the lines before it."""
    return ShownLine(line.time, line.stream, reader.read(line), ANSI.sub("", line.text))


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
    chosen, reader = visit.request.query_params.get("stream", ""), LevelReader()
    found = await _read_lines(visit, frame.builder.id, LOOKED_AT if chosen == ERRORS else SHOWN)
    lines = [line async for one in found if _is_chosen(line := shown_line(one.line, reader), chosen)][-SHOWN:]
    return await builder_page(
        visit,
        "logs.html",
        "logs",
        frame,
        lines=lines,
        q=_search_of(visit),
        stream=chosen if chosen in dict(CHOICES) else "",
        streams=CHOICES,
    )


def _is_chosen(line: ShownLine, chosen: str) -> bool:
    return chosen != ERRORS or line.level is Level.ERROR


@route("/builders/{name}/logs/stream")
async def stream_logs(request: Request) -> Response:
    """Send the last lines and then each as it is written, in batches: [microseconds, stream, version, text, level]."""
    check_origin(request)
    visit = await visit_of(request)
    builder = await visit.find()
    listeners = visit.operations.log_streams
    listeners.admit(visit.token.tenant_id)
    lines = _batches(visit, builder.id, LogPosition.parse(request.headers.get("last-event-id", "")))

    async def counted() -> AsyncGenerator[bytes]:
        with listeners.slot(visit.token.tenant_id):
            async with aclosing(lines):
                async for batch in lines:
                    yield batch

    return stream(counted(), permitted=visit.is_good_still)


async def _batches(visit: Visit, builder_id: str, after: LogPosition | None) -> AsyncGenerator[bytes]:
    wanted = _filter_of(visit, None if after else TAIL, after.time if after else None)
    pages, chosen, reader = visit.operations.paged_reads, visit.request.query_params.get("stream", ""), LevelReader()
    followed = logs.follow(visit.application, visit.token.tenant_id, builder_id, wanted, pages)
    coming = asyncio.ensure_future(anext(followed, None))
    batch: list[logs.FollowedLine] = []
    deadline = 0.0
    try:
        while True:
            left = max(0.0, deadline - asyncio.get_running_loop().time()) if batch else None
            await asyncio.wait({coming}, timeout=left)
            line = coming.result() if coming.done() else None
            if line is not None:
                coming = asyncio.ensure_future(anext(followed, None))
                deadline = deadline if batch else asyncio.get_running_loop().time() + WAIT_SECONDS
                batch.append(line)
                if len(batch) < BATCH:
                    continue
            found = [(one, shown_line(one.line, reader)) for one in batch if after is None or one.position > after]
            rows = [_row(one, line) for one, line in found if _is_chosen(line, chosen)]
            if rows:
                text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
                yield event("lines", text, str(batch[-1].position))
            batch = []
            if line is None and coming.done():
                yield event("done", {})
                return
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await followed.aclose()


def _row(one: logs.FollowedLine, line: ShownLine) -> list[object]:
    return [one.position.microseconds, line.stream.value, one.version, line.text, line.level or ""]


@page("/builders/{name}/logs/download")
async def download(visit: Visit) -> Response:
    """Return the last lines as a text file."""
    builder, chosen, reader = await visit.find(), visit.request.query_params.get("stream", ""), LevelReader()
    found = await _read_lines(visit, builder.id, TAIL)

    async def text() -> AsyncGenerator[str]:
        async with aclosing(found):
            async for line in found:
                if not _is_chosen(shown_line(line.line, reader), chosen):
                    continue
                yield f"{line.line.time.isoformat()} {line.line.stream.value} {line.line.text}\n"

    headers = {"Content-Disposition": f'attachment; filename="{builder.name}.log"'}
    return StreamingResponse(text(), 200, headers, "application/octet-stream")


#: Spans that can be chosen, in hours, and the step of each.
SPANS = {"1": timedelta(minutes=5), "6": timedelta(minutes=5), "24": timedelta(minutes=15)}


@page("/builders/{name}/metrics")
async def show_metrics(visit: Visit) -> Response:
    """Show the charts, which the page's script draws, and the answers in a table."""
    hours = _hours(visit)
    frame, report = await read_frame(visit, lambda uow, frame: _report(uow, visit, frame.builder.id, hours))
    whole = reduce(add, (usage for _, usage in report.steps), Usage())
    times = [(f"p{percent}", response_seconds(whole, percent / 100)) for percent in (50, 95, 99)]
    return await builder_page(
        visit,
        "metrics.html",
        "metrics",
        frame,
        hours=hours,
        spans=list(SPANS),
        answers=_answers(whole),
        report=report,
        times=[(name, seconds) for name, seconds in times if seconds is not None],
        requests=whole.requests,
        figures=[{"time": time, "figures": _figures(usage)} for time, usage in reversed(report.steps)],
        measured=any(usage.seconds for _, usage in report.steps),
    )


def _hours(visit: Visit) -> str:
    hours = visit.request.query_params.get("hours", "24")
    return hours if hours in SPANS else "24"


def _report(uow: UnitOfWork, visit: Visit, builder_id: str, hours: str) -> metrics.Report:
    span, tenant = timedelta(hours=int(hours)), visit.token.tenant_id
    return metrics.report(uow, visit.application, tenant, builder_id, span, SPANS[hours])


def _answers(whole: Usage) -> Sequence[dict[str, Any]]:
    """Return the answers by class: their number, share, and p50, p95 and p99 of the app's response times in ms."""
    sums = {name: getattr(whole, f"answers_{name}") for name in STATUS_CLASSES}
    found = []
    for name, count in sums.items():
        times = [response_seconds(whole, part, name) for part in (0.5, 0.95, 0.99)]
        share = 100 * count / sum(sums.values()) if count else 0.0
        in_ms = [None if seconds is None else 1000 * seconds for seconds in times]
        found.append({"name": name, "count": count, "share": share, "times": in_ms})
    return found


def _figures(usage: Usage) -> Sequence[str]:
    """Return the figures of one step of the charts as text; none where the builder did not run."""
    if not usage.seconds:
        return ()
    times = [response_seconds(usage, part) for part in (0.5, 0.95)]
    return (
        f"{usage.cpu or 0:.2f}",
        size(usage.memory_bytes or 0),
        size(usage.disk_most_bytes),
        size(usage.network_in_bytes / usage.seconds),
        size(usage.network_out_bytes / usage.seconds),
        f"{usage.requests:,}",
        f"{usage.answers_5xx:,}",
        *("" if seconds is None else f"{1000 * seconds:.0f} ms" for seconds in times),
    )


@page("/builders/{name}/metrics/data")
async def read_metrics(visit: Visit) -> Response:
    """Return the steps as columns.

    Time, CPU, memory, disk, network in and out a second, requests and 5xx a minute, p50 and p95 of the response times.
    """
    builder = await visit.find()
    report = await visit.read(lambda uow: _report(uow, visit, builder.id, _hours(visit)))
    rows = []
    for time, usage in report.steps:
        known = usage.seconds > 0
        minutes = usage.seconds / 60
        rows.append(
            (
                int(time.timestamp()),
                usage.cpu,
                usage.memory_bytes,
                usage.disk_most_bytes if known else None,
                usage.network_in_bytes / usage.seconds if known else None,
                usage.network_out_bytes / usage.seconds if known else None,
                usage.requests / minutes if known else None,
                usage.answers_5xx / minutes if known else None,
                response_seconds(usage, 0.5),
                response_seconds(usage, 0.95),
            )
        )
    limits = report.limits
    return JSONResponse(
        {
            "columns": [list(column) for column in zip(*rows, strict=True)],
            "limits": {"cpu": limits.cpu, "memory": limits.memory_bytes, "disk": limits.disk_bytes},
        }
    )
