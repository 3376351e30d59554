"""Bodies of responses: JSON documents and streams of server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
from httpx_sse import EventSource, ServerSentEvent

from builderd.client.errors import NoAnswer


class Events:
    """Server-sent events of one response."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.request_id: str = response.headers.get("x-request-id", "")
        #: JSON response in place of a stream, where there was nothing to wait for.
        self.answer: Any = None
        if response.headers.get("content-type", "").startswith("application/json"):
            response.read()
            self.answer = read_json(response)

    def __iter__(self) -> Iterator[ServerSentEvent]:
        """Iterate over the events that have data.

        After an event with an id, the decoder yields each comment (a heartbeat) as an event without data. The
        standard dispatches none: https://html.spec.whatwg.org/multipage/server-sent-events.html#dispatchMessage
        """
        return (event for event in EventSource(self._response).iter_sse() if event.data)


def read_json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except json.JSONDecodeError as error:
        raise NoAnswer(f"{response.request.url} answered {response.status_code} without JSON") from error
