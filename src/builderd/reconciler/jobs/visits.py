"""Visits: record when a builder was last visited, and wake sleeping builders for requests that wait in the proxy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from math import inf

from builderd.domain.previews import PreviewActivity
from builderd.reconciler.core.loops import every
from builderd.services import wake
from builderd.services.application import Application
from builderd.services.wake import is_recorded, used
from builderd.store import UnitOfWork


async def note(application: Application, within: float = inf) -> None:
    """Record visits: builders that were visited in the last seconds get a new ``last_active_at``."""
    activity = await application.previews.activity()
    recent = {host: one for host, one in activity.items() if one.open_connections or one.idle_seconds <= within}
    if recent:
        now = application.clock.now()
        news = await application.store.read(lambda uow: _changed_activity(uow, application, recent, now))
        # Each by itself: a transaction that holds one of them may be about to take another.
        for host, at in news.items():
            await application.store.write(partial(_write, host=host, at=at))


def _changed_activity(
    uow: UnitOfWork, application: Application, recent: Mapping[str, PreviewActivity], now: datetime
) -> Mapping[str, datetime]:
    """Return the last visit of each host whose builder has none recorded that is about as late."""
    news = {}
    for host, builder in uow.builders.by_hosts(list(recent)).items():
        activity = recent[host]
        at = now if activity.open_connections else now - timedelta(seconds=activity.idle_seconds)
        if not is_recorded(application, builder, at):
            news[host] = at
    return news


def _write(uow: UnitOfWork, host: str, at: datetime) -> None:
    builder = uow.builders.by_host(host, lock=True)
    if builder is not None:
        used(uow, builder, at)


#: After visitors could not be heard, or what they want could not be recorded: seconds until the next try, of so many.
RETRY_INTERVAL, TRIES = 1.0, 30

log = logging.getLogger(__name__)


async def watch(application: Application) -> None:
    """Wake visited builders until cancelled."""
    async with asyncio.TaskGroup() as group:

        async def watch_visits() -> None:
            async for host in application.previews.visitors():
                group.create_task(_wake(application, host))

        await every(RETRY_INTERVAL, watch_visits, event="visit watcher")


async def _wake(application: Application, host: str) -> None:
    """Retry for as long as a visitor may wait: the proxy reports a host only once."""
    for _ in range(TRIES):
        try:
            await wake.visited(application, host)
        except Exception:
            log.warning("wake failed, retrying in 1 s host=%s", host, exc_info=True)
        else:
            return
        await asyncio.sleep(RETRY_INTERVAL)
