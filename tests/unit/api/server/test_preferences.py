"""Preferences of the caller, by its headers."""

from __future__ import annotations

import pytest
from fastapi import Request

from builderd.api.server.preferences import wants_async, wants_events


def request(*headers: tuple[str, str]) -> Request:
    return Request({"type": "http", "headers": [(name.encode(), value.encode()) for name, value in headers]})


@pytest.mark.parametrize("value", ["respond-async", "Respond-Async", "wait=10, respond-async", "respond-async; x=1"])
def test_an_answer_at_once_is_preferred(value: str) -> None:
    assert wants_async(request(("prefer", value)))
    assert wants_async(request(("prefer", "return=minimal"), ("prefer", value)))


@pytest.mark.parametrize("value", ["", "wait=10", "respond-asynchronously", "x=respond-async"])
def test_any_other_preference_waits(value: str) -> None:
    assert not wants_async(request(("prefer", value)))
    assert not wants_async(request())


@pytest.mark.parametrize(
    ("accept", "events"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream", True),
        ("text/event-stream, */*", True),
        ("text/event-stream, application/json", True),
        ("application/json, text/event-stream", False),
        ("application/json;q=0.5, text/event-stream", True),
        ("text/event-stream;q=0.5, application/json", False),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=x", False),
        ("text/event-stream;q=nan", False),
        ("application/json", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_event_stream_is_chosen_by_accept_weight(accept: str, events: bool) -> None:
    assert wants_events(request(("accept", accept))) is events
