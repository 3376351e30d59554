"""Events: listed, and followed as they happen.

A follower asks for events with a greater id than the last one that it read. The store makes a tenant's events appear in
the order of their ids, so that no event is lost or sent twice, also with concurrent writers and reconnecting followers.
Events are fetched page by page, at the follower's speed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial

from builderd.application import Application
from builderd.builders.model import Status
from builderd.builders.signals import ANY
from builderd.core.ids import TenantId
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import Event
from builderd.events.store import EventQuery
from builderd.tokens.limits import PagedReads

#: Interval of polls between signals, in seconds, where the tenant has few followers.
LOOK_INTERVAL = 1.0
#: Minimum seconds between two polls of a follower, as above; events in between are read together.
LEAST_INTERVAL = 0.1
#: Maximum number of events that a follower reads at once.
PAGE = 100


async def start_after(application: Application, tenant_id: TenantId, query: EventQuery, given: int | None) -> int:
    """Return the event id after which a follower starts: ``given``, else 0 with ``query.since``, else the last id.

    A ``given`` id beyond the last one counts as the last, so that no later event is skipped.
    """
    last = await application.store.read(lambda uow: uow.events.last_id(tenant_id))
    if given is not None:
        return min(given, last)
    return last if query.since is None else 0


async def follow(
    application: Application, tenant_id: TenantId, query: EventQuery, after: int, pages: PagedReads | None = None
) -> AsyncGenerator[Event]:
    """Yield events with an id above ``after``, oldest first, as they happen; those of one builder until it is gone."""
    signals, topic = application.signals, query.builder or ANY
    if after:
        # The id says where to continue; filtering by time as well would skip events.
        query = replace(query, since=None)
    pages = pages or PagedReads()
    with pages.following(tenant_id):
        while True:
            seen = signals.count(topic)
            async with pages.place(tenant_id):
                read = partial(_read, tenant_id=tenant_id, query=query, after=after)
                found, over = await application.store.read(read)
            for event in found:
                after = event.id
                yield event
            if over and not found:
                return
            if len(found) < PAGE:
                slowdown = pages.slowdown(tenant_id)
                await signals.wait(topic, seen, LOOK_INTERVAL * slowdown)
                await asyncio.sleep(LEAST_INTERVAL * slowdown)


def _read(uow: UnitOfWork, tenant_id: TenantId, query: EventQuery, after: int) -> tuple[tuple[Event, ...], bool]:
    events = tuple(uow.events.following(tenant_id, query, after=after, limit=PAGE))
    builder = uow.builders.get(query.builder) if query.builder else None
    return events, builder is not None and builder.status is Status.DELETED
