"""Loops of background jobs, races, counters of running work, and the points at which a test kills the service."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

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


T = TypeVar("T")
R = TypeVar("R")


async def race(work: Coroutine[Any, Any, T], rival: Coroutine[Any, Any, R]) -> T | R:
    """Return the result of ``work``, or that of ``rival`` when it ended first.

    The slower one is cancelled, and has ended by the time of the return.
    """
    tasks = asyncio.create_task(work), asyncio.create_task(rival)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        return tasks[1].result()
    finally:
        await end_tasks(*tasks)


async def end_tasks(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks, and return once all have ended. What they raise is dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


K = TypeVar("K")


@contextmanager
def counted(counts: Counter[K], key: K) -> Iterator[None]:
    """Count one more of the key while the context is open. A key without any is not in the counter."""
    counts[key] += 1
    try:
        yield
    finally:
        counts[key] -= 1
        if not counts[key]:
            del counts[key]


#: Called with ``<step>.<moment>``; moments are ``begun`` (before the world is touched), ``done`` (after that,
#: before it is recorded) and ``recorded``.
FaultPoint = Callable[[str], None]


def no_fault(point: str) -> None:
    """Fault point of a service that is not under test: does nothing."""


def kill_at(chosen: str) -> FaultPoint:
    """Kills the process at the chosen point, as a crash or a power cut would: no cleanup runs."""

    def reach(point: str) -> None:
        if point == chosen:
            os.kill(os.getpid(), signal.SIGKILL)

    return reach
