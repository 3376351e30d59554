"""Events: listed, and followed as they happen.

A follower holds a place, the id of the last event it was given, and asks for what has a greater one. The store makes
a tenant's events appear in the order of their ids, so nothing is lost or told twice, whoever writes beside it and
however often the follower comes back. Events are fetched as they are taken: one that reads slowly holds a page.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial

from builderd.domain.builders import Status
from builderd.domain.events import Event
from builderd.domain.ids import TenantId
from builderd.ports.signals import ANY
from builderd.ports.store import UnitOfWork
from builderd.ports.store.events import EventQuery
from builderd.services.application import Application

#: How long to trust that a change of this process is signalled before looking again, in seconds.
LOOK_INTERVAL = 1.0
#: The least between two looks of a follower, however much happens: what happens meanwhile is read at once.
LEAST_INTERVAL = 0.1
#: How many events a follower holds at most.
PAGE = 100


async def start_after(application: Application, tenant_id: TenantId, query: EventQuery, given: int | None) -> int:
    """Return the event id after which a follower starts: ``given``, else 0 with ``query.since``, else the last id.

    A ``given`` id beyond the last one counts as the last, so that no later event is skipped.
    """
    last = await application.store.read(lambda uow: uow.events.last_id(tenant_id))
    if given is not None:
        return min(given, last)
    return last if query.since is None else 0


async def follow(application: Application, tenant_id: TenantId, query: EventQuery, after: int) -> AsyncGenerator[Event]:
    """Yield events with an id above ``after``, oldest first, as they happen; those of one builder until it is gone."""
    signals, told_by = application.signals, query.builder or ANY
    if after:
        # The id says where to continue; filtering by time as well would skip events.
        query = replace(query, since=None)
    while True:
        seen = signals.count(told_by)
        found, over = await application.store.read(partial(_read, tenant_id=tenant_id, query=query, after=after))
        for event in found:
            after = event.id
            yield event
        if over and not found:
            return
        if len(found) < PAGE:
            await signals.wait(told_by, seen, LOOK_INTERVAL)
            await asyncio.sleep(LEAST_INTERVAL)


def _read(uow: UnitOfWork, tenant_id: TenantId, query: EventQuery, after: int) -> tuple[tuple[Event, ...], bool]:
    events = tuple(uow.events.following(tenant_id, query, after=after, limit=PAGE))
    builder = uow.builders.get(query.builder) if query.builder else None
    return events, builder is not None and builder.status is Status.DELETED
