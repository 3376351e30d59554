"""Server-sent events, decoded line by line (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


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
