"""Log lines of apps and installers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import PlainSerializer

from builderd.domain.logs import LogStream
from builderd.schemas.v1.envelope import Success
from builderd.schemas.v1.shape import View


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
