"""Waking: visitors who wait for a builder that is asleep bring it back."""

from __future__ import annotations

import asyncio
import logging

from builderd.services import wake
from builderd.services.application import Application

#: After visitors could not be listened to: how long until the next try, in seconds.
RETRY_INTERVAL = 1.0

log = logging.getLogger(__name__)


async def watch(application: Application) -> None:
    """Wake what is visited, until cancelled."""
    while True:
        try:
            async for host in application.previews.visitors():
                await wake.visited(application, host)
        except Exception:
            log.warning("visitors wake nothing for a moment", exc_info=True)
        await asyncio.sleep(RETRY_INTERVAL)
