"""Calls for events, webhooks and metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Literal, Protocol, TypeVar

from httpx2 import ServerSentEvent
from pydantic import BaseModel

from builderd.client.legacy.errors import NoAnswer
from builderd.client.legacy.pages import all_of
from builderd.schemas.v1.events import Event, EventPage
from builderd.schemas.v1.metrics import Metrics, MetricsAnswer
from builderd.schemas.v1.webhooks import (
    DeliveryPage,
    NewWebhookAnswer,
    Webhook,
    WebhookAnswer,
    WebhookPage,
    WebhookWithSecret,
)

V = TypeVar("V", bound=BaseModel)

API = "/api/v1"
#: Seconds before an interrupted stream is opened again.
RECONNECT_SECONDS = 1.0


class Caller(Protocol):
    """Calls of the client that this class uses."""

    def call(self, answer: type[V], method: str, path: str, **options: Any) -> V: ...
    def stream(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **options: Any
    ) -> AbstractContextManager[Iterable[ServerSentEvent]]: ...


class Watching:
    """Event, metric and webhook calls (``Client.watch``): of one builder with its ``uuid``, else of all."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def events(
        self,
        uuid: str | None = None,
        *,
        types: Sequence[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        page: int = 1,
        per_page: int = 25,
    ) -> EventPage:
        """Return a page of events, newest first. ``types`` such as ``builder.status`` or ``stage.*``."""
        query = {**_filters(types, since), **_time("until", until), "page": page, "per_page": per_page}
        return self._caller.call(EventPage, "GET", _events_of(uuid), params=query)

    def follow_events(
        self,
        uuid: str | None = None,
        *,
        types: Sequence[str] = (),
        since: datetime | None = None,
        after: int | None = None,
    ) -> Iterator[Event]:
        """Yield each event as it happens, from now on, from ``since``, or after the event with the id ``after``.

        An interrupted connection is resumed after the last event: none is lost or repeated. Ends when the builder is
        deleted; without ``uuid`` it never ends.
        """
        query = {**_filters(types, since), "follow": True}
        while True:
            try:
                headers = {} if after is None else {"Last-Event-ID": str(after)}
                with self._caller.stream("GET", _events_of(uuid), headers=headers, params=query) as stream:
                    for one in stream:
                        event = Event.model_validate(one.json())
                        after = event.id
                        yield event
            except NoAnswer:
                # Without a last event id, events during the interruption would be lost silently.
                if after is None:
                    raise
                time.sleep(RECONNECT_SECONDS)
            else:
                return

    def metrics(self, uuid: str, *, hours: int = 24, step: Literal["5m", "15m", "1h"] = "5m") -> Metrics:
        """Return the builder's present usage and its usage in the last hours."""
        query = {"hours": hours, "step": step}
        return self._caller.call(MetricsAnswer, "GET", f"{API}/builders/{uuid}/metrics", params=query).data

    # Webhooks

    def create_webhook(
        self, url: str, *, events: Sequence[str] = ("*",), secret: str | None = None
    ) -> WebhookWithSecret:
        """Create a webhook for the URL; only this response contains its secret."""
        body = {"url": url, "events": list(events), **({"secret": secret} if secret else {})}
        return self._caller.call(NewWebhookAnswer, "POST", f"{API}/webhooks", json=body).data

    def webhooks(self) -> list[Webhook]:
        """List all webhooks, oldest first."""
        return all_of(self._caller.call, WebhookPage, f"{API}/webhooks")

    def delete_webhook(self, webhook: str) -> Webhook:
        """Delete a webhook."""
        return self._caller.call(WebhookAnswer, "DELETE", f"{API}/webhooks/{webhook}").data

    def deliveries(self, webhook: str, *, page: int = 1, per_page: int = 25) -> DeliveryPage:
        """Return a page of its deliveries, newest event first."""
        query = {"page": page, "per_page": per_page}
        return self._caller.call(DeliveryPage, "GET", f"{API}/webhooks/{webhook}/deliveries", params=query)


def _events_of(uuid: str | None) -> str:
    return f"{API}/events" if uuid is None else f"{API}/builders/{uuid}/events"


def _filters(types: Sequence[str], since: datetime | None) -> dict[str, Any]:
    return {**({"type": ",".join(types)} if types else {}), **_time("since", since)}


def _time(name: str, time: datetime | None) -> dict[str, str]:
    return {} if time is None else {name: time.isoformat()}
