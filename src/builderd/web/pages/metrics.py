"""Metrics of a builder: charts of the last hours, and its answers by class."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import reduce
from typing import Any

from starlette.responses import JSONResponse, Response

from builderd.domain.metrics import Usage, add, response_seconds
from builderd.domain.previews import STATUS_CLASSES
from builderd.services import metrics
from builderd.store import UnitOfWork
from builderd.web.pages.builder import builder_page, read_frame
from builderd.web.shown import size
from builderd.web.visits import Visit, page

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
    period = metrics.Period(visit.now, timedelta(hours=int(hours)), SPANS[hours])
    return metrics.report(uow, visit.application, visit.token.tenant_id, builder_id, period)


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
