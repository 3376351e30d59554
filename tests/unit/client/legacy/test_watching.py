"""Events, webhooks and metrics, as programs use them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tests.service import MINIMAL
from tests.threaded_service import Running

from builderd.api.server import streams
from builderd.client.legacy import Client, watching
from builderd.domain.webhooks import key_of
from builderd.schemas.v1.builders import NewBuilder

NEW = NewBuilder.model_validate(MINIMAL, context={})


def test_events_are_listed_and_filtered(client: Client) -> None:
    builder = client.create(NEW)
    page = client.watch.events(types=["builder.*"])
    assert [event.type for event in page.data] == ["builder.status", "builder.created"]
    assert client.watch.events(builder.uuid, types=["builder.*"]).data == page.data
    assert client.watch.events(until=page.data[-1].time).data == []


def test_a_follower_whose_connection_breaks_off_goes_on_where_it_was(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RECONNECT_SECONDS", 0.01)
    with Client(running.url, running.service.write) as other:
        builder = other.create(NEW)
        all_of_them = other.watch.events(per_page=100).data[::-1]
        with Client(running.url, running.service.write, transport=Breaking()) as client:
            told = client.watch.follow_events(builder.uuid, after=0)
            assert [next(told) for _ in all_of_them] == all_of_them


def test_a_follower_of_events_gets_over_heartbeats(
    client: Client, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.02)
    builder = client.create(NEW)
    events = client.watch.follow_events(builder.uuid, types=["builder.*"], after=0)
    assert [next(events).type for _ in range(2)] == ["builder.created", "builder.status"]
    time.sleep(0.2)
    with Client(running.url, running.service.write) as other:
        other.stop(builder.uuid)
    assert next(events).type == "builder.status"
    events.close()  # type: ignore[attr-defined]


class Breaking(httpx2.HTTPTransport):
    """Lets through so many bytes of each answer more than of the one before, and breaks off."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = 300

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        self._bytes += 150
        return httpx2.Response(
            response.status_code, headers=response.headers, stream=_Cut(response.stream, self._bytes)
        )


class _Cut(httpx2.SyncByteStream):
    def __init__(self, stream: Any, left: int) -> None:
        self._stream = stream
        self._left = left

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            yield piece[: self._left]
            self._left -= len(piece)
            if self._left <= 0:
                raise httpx2.ReadError("the connection broke off")

    def close(self) -> None:
        self._stream.close()


def test_webhooks_are_made_listed_and_deleted(client: Client) -> None:
    made = client.watch.create_webhook("https://example.com/hook", events=["builder.*"])
    assert len(key_of(made.secret)) == 32
    assert [hook.id for hook in client.watch.webhooks()] == [made.id]
    assert client.watch.deliveries(made.id).data == []
    assert client.watch.delete_webhook(made.id).id == made.id
    assert client.watch.webhooks() == []


def test_metrics_are_read(client: Client) -> None:
    builder = client.create(NEW)
    metrics = client.watch.metrics(builder.uuid, hours=1, step="15m")
    assert (metrics.step_seconds, len(metrics.steps)) == (900, 4)
    assert metrics.steps[0].answers.ok == 0
