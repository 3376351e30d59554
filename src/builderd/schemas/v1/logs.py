"""Log lines of apps and installers, and events of builders and tenants."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import PlainSerializer

from builderd.domain.sandboxes import LogStream
from builderd.schemas.v1.shape import Page, Success, View


def _exact(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


#: RFC 3339 in UTC with microseconds: lines come faster than seconds.
ExactTime = Annotated[datetime, PlainSerializer(_exact, when_used="json")]


class LogLine(View):
    """Log line with the version that wrote it."""

    time: ExactTime
    stream: LogStream
    version: int
    text: str


class LogAnswer(Success[list[LogLine]]):
    """Log lines, oldest first."""


class LogBucket(View):
    """Lines from ``time`` on, ``errors`` those of them that the app wrote to its standard error."""

    time: ExactTime
    lines: int
    errors: int


class LogVersion(View):
    """Version and the time of its first line."""

    version: int
    time: ExactTime


class LogDensity(View):
    """Lines over time: ``buckets`` of ``bucket_seconds`` each, from the first line to the last."""

    lines: int
    bucket_seconds: float
    buckets: list[LogBucket]
    versions: list[LogVersion]


class LogDensityAnswer(Success[LogDensity]):
    """Response with a log's density."""


class Event(View):
    """Event. ``id`` grows with time within a tenant. ``builder`` is null for the tenant's own.

    ``actor`` is ``token <name>`` or ``system``; ``reason`` is for people, ``details`` for machines.
    """

    id: int
    time: ExactTime
    type: str
    builder: str | None
    actor: str
    reason: str
    details: dict[str, Any]


class EventPage(Page[Event]):
    """Events, the newest first."""
