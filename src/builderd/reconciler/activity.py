"""Activity: when a builder was last visited, as its owner sees it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from builderd.domain.previews import PreviewActivity
from builderd.ports.store import UnitOfWork
from builderd.services.application import Application

#: How often the preview's counters are read, in seconds.
INTERVAL = 5.0

log = logging.getLogger(__name__)


async def watch(application: Application) -> None:
    """Write down visits from time to time, until cancelled."""
    while True:
        await application.clock.sleep(INTERVAL)
        try:
            await note(application)
        except Exception:
            log.warning("the visits could not be read", exc_info=True)


async def note(application: Application) -> None:
    """One reading: builders that were visited since the last one get a new ``last_active_at``."""
    activity = await application.previews.activity()
    recent = {host: one for host, one in activity.items() if one.open_connections or one.idle_seconds <= 2 * INTERVAL}
    if recent:
        now = application.clock.now()
        await application.store.write(lambda uow: _write(uow, recent, now))


def _write(uow: UnitOfWork, recent: Mapping[str, PreviewActivity], now: datetime) -> None:
    for host, activity in sorted(recent.items()):
        builder = uow.builders.by_host(host, lock=True)
        if builder is None:
            continue
        at = now if activity.open_connections else now - timedelta(seconds=activity.idle_seconds)
        if builder.last_active_at is None or at - builder.last_active_at >= timedelta(seconds=1):
            uow.builders.save(replace(builder, last_active_at=at))
