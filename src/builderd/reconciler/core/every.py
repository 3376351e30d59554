"""The loop of a background job: run it, log its failure, wait, run it again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


async def every(
    interval: float,
    job: Callable[[], Awaitable[object]],
    *,
    event: str,
    wait_first: bool = False,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Run ``job`` until cancelled, with ``interval`` seconds between its end and its next start.

    A job that raises is logged as "``event`` failed, retrying in N s" and runs again after the same interval.
    ``wait_first`` begins with the pause. ``sleep`` is a clock's where a test must be able to move the time.
    """
    if wait_first:
        await sleep(interval)
    while True:
        try:
            await job()
        except Exception:
            # ``event`` is a literal at the call, so that a search for the log line finds its job.
            log.log(logging.WARNING, "%s failed, retrying in %g s", event, interval, exc_info=True)
        await sleep(interval)
