"""Bodies of responses: JSON documents and streams of server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
from httpx2 import EventSource, ServerSentEvent

from builderd.client.legacy.errors import NoAnswer


class Events:
    """Server-sent events of one response."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self.request_id: str = response.headers.get("x-request-id", "")
        #: JSON response in place of a stream, where there was nothing to wait for.
        self.answer: Any = None
        if response.headers.get("content-type", "").startswith("application/json"):
            response.read()
            self.answer = read_json(response)

    def __iter__(self) -> Iterator[ServerSentEvent]:
        """Iterate over the events that have data: the standard dispatches none without."""
        return (event for event in EventSource(self._response) if event.data)


def read_json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except json.JSONDecodeError as error:
        raise NoAnswer(f"{response.request.url} answered {response.status_code} without JSON") from error
