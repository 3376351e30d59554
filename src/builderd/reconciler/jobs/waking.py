"""Waking: start a stopped builder, or thaw a frozen one, for requests that wait in the proxy."""

from __future__ import annotations

import asyncio
import logging

from builderd.reconciler.core.loops import every
from builderd.services import wake
from builderd.services.application import Application

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
