"""Live changes: one event stream for each open page, fed by one follower of each tenant's events.

A page learns that something happened, and asks for the regions that show it. An open page holds nothing here but
a place in a queue, and 200 of them cost one look at the store a second.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response

from builderd.api.server.streams import event, stream
from builderd.domain.errors import BuilderdError, machine_fault
from builderd.domain.events import Event
from builderd.domain.ids import TenantId
from builderd.operations.concurrency import ConcurrencyLimit
from builderd.services import events
from builderd.services.application import Application
from builderd.store.events import EventQuery
from builderd.web.policy import check_origin
from builderd.web.visits import visit_of

log = logging.getLogger(__name__)

#: Events that a page which reads slowly may be behind; after more it looks at everything anew.
AHEAD = 200
#: Open pages of a tenant at the same time.
MAX_PAGES = 200
#: Events that are kept for pages that come back.
KEPT = 500
RETRY_SECONDS = 2.0

#: A message to a page: the event's id, and its text. None: look at everything anew.
Message = tuple[int, str] | None


class Feed:
    """The events of one tenant, followed while a page of its is open."""

    def __init__(self, application: Application, tenant_id: TenantId) -> None:
        self._application = application
        self._tenant_id = tenant_id
        self._pages: set[asyncio.Queue[Message]] = set()
        self._kept: deque[tuple[int, str]] = deque(maxlen=KEPT)
        self._task: asyncio.Task[None] | None = None

    def open(self, after: int | None) -> asyncio.Queue[Message]:
        """Return a new page's queue: with what happened after the event that it knows, as far as that is kept."""
        queue: asyncio.Queue[Message] = asyncio.Queue(AHEAD)
        if after is not None:
            missed = [message for message in self._kept if message[0] > after]
            is_whole = bool(self._kept) and self._kept[0][0] <= after + 1 and len(missed) < AHEAD
            for message in missed if is_whole else [None]:
                queue.put_nowait(message)
        self._pages.add(queue)
        if self._task is None:
            self._task = asyncio.create_task(self._follow())
        return queue

    def close(self, queue: asyncio.Queue[Message]) -> bool:
        """Forget the page; return whether it was the last one."""
        self._pages.discard(queue)
        if not self._pages and self._task is not None:
            self._task.cancel()
            self._task = None
        return not self._pages

    async def _follow(self) -> None:
        query = EventQuery()
        while True:
            try:
                after = await events.start_after(self._application, self._tenant_id, query, None)
                self._tell(None)
                async for one in events.follow(self._application, self._tenant_id, query, after):
                    message = (one.id or 0, _text(one))
                    self._kept.append(message)
                    self._tell(message)
            except Exception as error:
                if not isinstance(error, BuilderdError) and machine_fault(error) is None:
                    log.exception("live events failed, retrying tenant=%s", self._tenant_id)
            await asyncio.sleep(RETRY_SECONDS)

    def _tell(self, message: Message) -> None:
        for queue in self._pages:
            behind = queue.full()
            while behind and not queue.empty():
                queue.get_nowait()
            queue.put_nowait(None if behind else message)


class Feeds:
    """The feeds of all tenants that have a page open."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._feeds: dict[TenantId, Feed] = {}
        self.listeners = ConcurrencyLimit(MAX_PAGES, "pages are open already: close one.")

    async def messages(self, tenant_id: TenantId, after: int | None) -> AsyncGenerator[bytes]:
        """Yield messages of this tenant's events until the page leaves."""
        feed = self._feeds.setdefault(tenant_id, Feed(self._application, tenant_id))
        queue = feed.open(after)
        try:
            with self.listeners.hold(tenant_id):
                while True:
                    message = await queue.get()
                    yield event("reset", {}) if message is None else event("change", message[1], str(message[0]))
        finally:
            if feed.close(queue):
                self._feeds.pop(tenant_id, None)


def _text(one: Event) -> str:
    return json.dumps({"type": one.type, "builder": one.builder_id}, separators=(",", ":"))


async def open_stream(request: Request) -> Response:
    """Tell a page of each change: ``change`` (type and builder), or ``reset`` when it must look at everything anew."""
    check_origin(request)
    visit = await visit_of(request)
    feeds: Feeds = request.app.state.feeds
    feeds.listeners.admit(visit.token.tenant_id)
    last = request.headers.get("last-event-id", "")
    after = int(last) if last.isascii() and last.isdecimal() and len(last) <= 18 else None
    return stream(feeds.messages(visit.token.tenant_id, after), permitted=visit.is_good_still)
