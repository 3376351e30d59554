"""Metrics of a builder: charts of the last hours, and its answers by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce

from starlette.responses import JSONResponse, Response

from builderd.domain.metrics import Usage, add, response_seconds
from builderd.domain.previews import STATUS_CLASSES
from builderd.services import metrics
from builderd.store import UnitOfWork
from builderd.web.pages.builder import BuilderFrame, builder_page, frame_of
from builderd.web.shown import size
from builderd.web.visits import Visit, page

#: Spans that can be chosen, in hours, and the step of each.
SPANS = {"1": timedelta(minutes=5), "6": timedelta(minutes=5), "24": timedelta(minutes=15)}


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of one class in the chosen time."""

    name: str
    count: int
    share: float
    #: p50, p95 and p99 of the app's response times in ms; None without any.
    times: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of one step of the charts, as text; none where the builder did not run."""

    time: datetime
    figures: Sequence[str]


async def show_metrics(visit: Visit) -> Response:
    """Show the charts, which the page's script draws, and the answers in a table."""
    hours = visit.request.query_params.get("hours", "24")
    hours = hours if hours in SPANS else "24"

    def look(uow: UnitOfWork) -> tuple[BuilderFrame, metrics.Report]:
        frame = frame_of(uow, visit)
        return frame, _report(uow, visit, frame.builder.id, hours)

    frame, report = await visit.read(look)
    return await builder_page(
        visit,
        "metrics.html",
        "metrics",
        frame,
        hours=hours,
        spans=list(SPANS),
        answers=_answers(report),
        report=report,
        times=_times(report),
        requests=sum(usage.requests for _, usage in report.steps),
        figures=[_figures(time, usage) for time, usage in reversed(report.steps)],
        measured=any(usage.seconds for _, usage in report.steps),
    )


def _report(uow: UnitOfWork, visit: Visit, builder_id: str, hours: str) -> metrics.Report:
    period = metrics.Period(visit.now, timedelta(hours=int(hours)), SPANS[hours])
    return metrics.report(uow, visit.application, visit.token.tenant_id, builder_id, period)


def _answers(report: metrics.Report) -> Sequence[Answers]:
    sums = [(name, sum(getattr(usage, f"answers_{name}") for _, usage in report.steps)) for name in STATUS_CLASSES]
    whole = sum(count for _, count in sums)
    usage = reduce(add, (usage for _, usage in report.steps), Usage())
    return [
        Answers(name, count, 100 * count / whole if whole else 0.0, _percentiles(usage, name)) for name, count in sums
    ]


def _percentiles(usage: Usage, cls: str) -> Sequence[float | None]:
    found = [response_seconds(usage, share, cls) for share in (0.5, 0.95, 0.99)]
    return [None if seconds is None else 1000 * seconds for seconds in found]


def _figures(time: datetime, usage: Usage) -> Figures:
    if not usage.seconds:
        return Figures(time, ())
    times = [response_seconds(usage, part) for part in (0.5, 0.95)]
    return Figures(
        time,
        (
            f"{usage.cpu or 0:.2f}",
            size(usage.memory_bytes or 0),
            size(usage.disk_most_bytes),
            size(usage.network_in_bytes / usage.seconds),
            size(usage.network_out_bytes / usage.seconds),
            f"{usage.requests:,}",
            f"{usage.answers_5xx:,}",
            *("" if seconds is None else f"{1000 * seconds:.0f} ms" for seconds in times),
        ),
    )


def _times(report: metrics.Report) -> Sequence[tuple[str, float]]:
    """Return the percentiles of the response times of all steps together, in seconds; none without responses."""
    whole = reduce(add, (usage for _, usage in report.steps), Usage())
    found = [(f"p{percent}", response_seconds(whole, percent / 100)) for percent in (50, 95, 99)]
    return [(name, seconds) for name, seconds in found if seconds is not None]


async def read_metrics(visit: Visit) -> Response:
    """Return the steps as columns.

    Time, CPU, memory, disk, network in and out a second, requests and 5xx a minute, p50 and p95 of the response times.
    """
    hours = visit.request.query_params.get("hours", "24")
    hours = hours if hours in SPANS else "24"
    builder = await visit.find()
    report = await visit.read(lambda uow: _report(uow, visit, builder.id, hours))
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


ROUTES = [page("/builders/{name}/metrics", show_metrics), page("/builders/{name}/metrics/data", read_metrics)]
