"""Metrics of a builder."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from builderd.builders.api import Uuid
from builderd.core.resources import Resources
from builderd.metrics import service as metrics
from builderd.metrics.model import Usage, UsageSample, response_seconds
from builderd.previews.model import STATUS_CLASSES
from builderd.schemas import monitoring as wire
from builderd.schemas.shape import Parameters, Success
from builderd.server import openapi
from builderd.server.answers import PREFIX, success
from builderd.server.auth import Reader, TheApplication, operations_of

router = APIRouter(prefix=PREFIX, tags=[openapi.WATCHING])

STEPS = {"5m": timedelta(minutes=5), "15m": timedelta(minutes=15), "1h": timedelta(hours=1)}


class MetricsQuery(Parameters):
    """Time span and step of the metrics."""

    hours: int = Field(default=24, ge=1, le=24)
    step: Literal["5m", "15m", "1h"] = "5m"


@router.get(
    "/builders/{uuid}/metrics", responses=openapi.answers(200, Success[wire.Metrics], "Now, and in steps.", 404, 422)
)
async def read_metrics(
    request: Request, application: TheApplication, identity: Reader, uuid: Uuid, query: Annotated[MetricsQuery, Query()]
) -> Response:
    """Return CPU, memory, disk, network, requests and their answers: now, and over the last hours."""
    tenant_id, step = identity.token.tenant_id, STEPS[query.step]
    span = timedelta(hours=query.hours)
    async with operations_of(request).lists.one(tenant_id):
        report = await application.store.read(
            lambda uow: metrics.report(uow, application, tenant_id, uuid.lower(), span, step)
        )
    data = wire.Metrics(
        now=_present(report.now, report.limits) if report.now else None,
        step_seconds=int(step.total_seconds()),
        steps=[_step(time, usage) for time, usage in report.steps],
    )
    message = "It does not run now." if report.now is None else f"{len(data.steps)} steps of {query.step}."
    return success(Success[wire.Metrics](message=message, data=data)).response()


def _present(reading: UsageSample, limits: Resources) -> wire.Present:
    since_previous, used = reading.since_previous, reading.used
    return wire.Present(
        time=reading.at,
        seconds=round(since_previous.seconds, 3),
        cpu=_rounded(since_previous.cpu),
        cpu_limit=limits.cpu,
        memory_bytes=used.memory_bytes,
        memory_limit_bytes=limits.memory_bytes,
        disk_bytes=used.disk_bytes,
        disk_limit_bytes=limits.disk_bytes,
        processes=used.processes,
        network_in_bytes_per_second=_rate(since_previous.network_in_bytes, since_previous),
        network_out_bytes_per_second=_rate(since_previous.network_out_bytes, since_previous),
        requests_per_second=_rate(since_previous.requests, since_previous),
        open_connections=reading.visited.open_connections if reading.visited else 0,
        answers=_answers(since_previous, since_previous.seconds) if since_previous.seconds else None,
        response_seconds=_response_times(since_previous),
        response_seconds_by_class=_class_times(since_previous),
    )


def _step(time: datetime, usage: Usage) -> wire.Step:
    watched = usage.seconds > 0
    return wire.Step.of(
        usage,
        time=time,
        seconds=round(usage.seconds, 3),
        cpu=_rounded(usage.cpu),
        memory_most_bytes=usage.memory_most_bytes if watched else None,
        disk_most_bytes=usage.disk_most_bytes if watched else None,
        requests_per_second=_rate(usage.requests, usage),
        answers=_answers(usage, 1),
        response_seconds=_response_times(usage),
        response_seconds_by_class=_class_times(usage),
    )


def _class_times(usage: Usage) -> wire.ClassTimes | None:
    found = {cls: _response_times(usage, cls) for cls in STATUS_CLASSES}
    return wire.ClassTimes(**found) if any(found.values()) else None


def _response_times(usage: Usage, cls: str | None = None) -> wire.ResponseTimes | None:
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    found = {name: response_seconds(usage, share, cls) for name, share in shares.items()}
    known = {name: round(seconds, 4) for name, seconds in found.items() if seconds is not None}
    return wire.ResponseTimes(**known) if known else None


def _answers(usage: Usage, seconds: float) -> wire.Answers:
    counts = (usage.answers_2xx, usage.answers_3xx, usage.answers_4xx, usage.answers_5xx)
    shares = (round(count / seconds, 4) for count in counts)
    return wire.Answers(**dict(zip(STATUS_CLASSES, shares, strict=True)))


def _rate(count: float, usage: Usage) -> float | None:
    return round(count / usage.seconds, 4) if usage.seconds else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
