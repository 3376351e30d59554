"""Activity: what counts as use of a builder, and keeps it from being frozen and stopped.

Use: a visit, an open connection to its preview, a command, an SSH session, access to its files, a start. No use:
requests that the app itself sends, and calls that only read the builder's record or logs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta

from builderd.domain.builders import Builder
from builderd.domain.ids import BuilderId
from builderd.services.application import Application
from builderd.store import UnitOfWork

log = logging.getLogger(__name__)

#: How often a use that continues is written down, in seconds; more often where things are frozen sooner.
INTERVAL = 15.0
#: Visits, uses of a builder's files, and commands in it, within this time of each other are recorded once; less where
#: things are frozen sooner.
NOTICED = timedelta(seconds=1)
#: A use that continues is recorded so many times in the shortest time after which its builder may be frozen.
NOTES_PER_FREEZE = 3

#: Records a continuing use; returns the id of the builder that it woke, if any.
Note = Callable[[UnitOfWork], BuilderId | None]


def touch(uow: UnitOfWork, builder_id: BuilderId, at: datetime) -> Builder | None:
    """Record a use of the builder at this time; return it, None when it is gone. ``services.wake`` does the waking.

    Call this repeatedly while a use lasts, such as an open session.
    """
    builder = uow.builders.get(builder_id, lock=True)
    return None if builder is None else used(uow, builder, at)


def used(uow: UnitOfWork, builder: Builder, at: datetime) -> Builder:
    """Record a use of a locked builder at this time; return the builder with it. Wakes nothing."""
    later = touched(builder, at)
    if later is not builder:
        uow.builders.save(later)
    return later


def touched(builder: Builder, at: datetime) -> Builder:
    """Return the builder with ``last_active_at`` moved forward to this time, never back. The caller saves it."""
    if builder.last_active_at is not None and builder.last_active_at >= at:
        return builder
    return replace(builder, last_active_at=at)


def is_recorded(application: Application, builder: Builder, at: datetime) -> bool:
    """Return True if a use was recorded so lately before ``at`` that one at that time need not be."""
    within = min(NOTICED, timedelta(seconds=_interval(application)))
    return builder.last_active_at is not None and at - builder.last_active_at < within


@asynccontextmanager
async def track_use(application: Application, builder: Builder) -> AsyncIterator[None]:
    """Record a use of the builder's files while the block lasts. A sleeping builder stays asleep."""
    now = application.clock.now()
    if not is_recorded(application, builder, now):
        await application.store.write(lambda uow: touch(uow, builder.id, now))

    def note(uow: UnitOfWork) -> None:
        touch(uow, builder.id, application.clock.now())

    async with record_use_repeatedly(application, note):
        yield


@asynccontextmanager
async def record_use_repeatedly(application: Application, note: Note) -> AsyncIterator[None]:
    """Record the use by ``note``, again and again, while the block lasts."""
    tasks: list[asyncio.Task[None]] = []

    def begin() -> None:
        tasks.append(asyncio.create_task(_record_repeatedly(application, note)))

    # Most blocks are over before that.
    timer = asyncio.get_running_loop().call_later(_interval(application), begin)
    try:
        yield
    finally:
        timer.cancel()
        for task in tasks:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _interval(application: Application) -> float:
    """Return how often a use that continues is recorded, in seconds."""
    freeze_after = application.limits.freeze_after
    return min(INTERVAL, freeze_after / NOTES_PER_FREEZE) if freeze_after else INTERVAL


async def _record_repeatedly(application: Application, note: Note) -> None:
    while True:
        try:
            woken = await application.store.write(note)
            if woken is not None:
                application.signals.desired_changed(woken)
                application.signals.change(woken)
        except Exception:
            # The use continues, and so does its record once the database answers again.
            log.exception("use not recorded, retrying in a few seconds")
        await asyncio.sleep(_interval(application))
