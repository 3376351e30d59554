"""Log lines and server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html). Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builderd.client.models import LogLine


class LogCursor:
    """Position in a log that is read again and again."""

    #: The API's limit of lines in one answer.
    MOST = 100_000

    def __init__(self) -> None:
        self.since: datetime | None = None
        self._seen = 0

    def new_of(self, lines: Sequence[LogLine]) -> list[LogLine]:
        """Return the lines that were not seen, of those from ``since`` on."""
        known = self._seen
        if self.since is None or not lines or lines[0].time != self.since:
            known = 0
        fresh = list(lines[known:])
        if lines:
            last = lines[-1].time
            self._seen = sum(1 for line in lines if line.time == last)
            self.since = last
        return fresh


@dataclass(frozen=True, slots=True)
class Event:
    """Event with data. ``id`` is the last one that the stream has given."""

    name: str
    data: str
    id: str

    def json(self) -> Any:
        return json.loads(self.data)


class EventDecoder:
    """Decoder of one stream's lines, without their ends."""

    def __init__(self) -> None:
        self._name = ""
        self._data: list[str] = []
        self._id = ""

    def decode(self, line: str) -> Event | None:
        """Return the event that an empty line ends, if it has data."""
        if not line:
            event = Event(self._name or "message", "\n".join(self._data), self._id) if self._data else None
            self._name, self._data = "", []
            return event
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        elif field == "id" and "\0" not in value:
            self._id = value
        return None
