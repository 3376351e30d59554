"""Activity: what counts as use of a builder, and keeps it from being frozen and stopped.

A visit, an open connection to its preview, a command, an SSH session, the files, a start. Not: what the app itself
sends, and whoever only looks at its record or its logs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta

from builderd.domain.builders import Builder
from builderd.domain.ids import BuilderId, SandboxId
from builderd.ports.store import UnitOfWork
from builderd.services.application import Application

log = logging.getLogger(__name__)

#: How often a use that goes on is written down, in seconds; more often where things are frozen sooner.
INTERVAL = 15.0
#: Uses of its files that follow each other faster are written down once.
NOTICED = timedelta(seconds=1)

#: Finds out which builder it is about; None when it is gone.
Whose = Callable[[UnitOfWork], BuilderId | None]


def touch(uow: UnitOfWork, builder_id: BuilderId, at: datetime) -> Builder | None:
    """Record that it was used then; None when it is gone. Wakes nothing: that is ``services.wake``.

    Call it again from time to time while a use goes on, such as an open session.
    """
    builder = uow.builders.get(builder_id, lock=True)
    return None if builder is None else used(uow, builder, at)


def used(uow: UnitOfWork, builder: Builder, at: datetime) -> Builder:
    """The same for one that is locked already."""
    later = touched(builder, at)
    if later is not builder:
        uow.builders.save(later)
    return later


def touched(builder: Builder, at: datetime) -> Builder:
    """The builder as it is once it was used then, never earlier than before. The caller saves it."""
    if builder.last_active_at is not None and builder.last_active_at >= at:
        return builder
    return replace(builder, last_active_at=at)


@asynccontextmanager
async def going_on(application: Application, sandbox: SandboxId) -> AsyncIterator[None]:
    """The sandbox's builder is used for as long as the block lasts: by a command, a session."""

    def whose(uow: UnitOfWork) -> BuilderId | None:
        record = uow.sandboxes.get(sandbox)
        return None if record is None else record.builder_id

    async with _touching(application, whose):
        yield


@asynccontextmanager
async def reached(application: Application, builder: Builder) -> AsyncIterator[None]:
    """Its files are used, from now on and for as long as the block lasts. Whether it runs or sleeps, it goes on so."""
    now = application.clock.now()
    if builder.last_active_at is None or now - builder.last_active_at >= NOTICED:
        await application.store.write(lambda uow: touch(uow, builder.id, now))
    async with _touching(application, lambda _: builder.id):
        yield


@asynccontextmanager
async def _touching(application: Application, whose: Whose) -> AsyncIterator[None]:
    task = asyncio.create_task(_keep_touching(application, whose))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _keep_touching(application: Application, whose: Whose) -> None:
    freeze_after = application.limits.freeze_after
    interval = min(INTERVAL, freeze_after / 3) if freeze_after else INTERVAL

    def write(uow: UnitOfWork) -> None:
        if (builder_id := whose(uow)) is not None:
            touch(uow, builder_id, application.clock.now())

    while True:
        await asyncio.sleep(interval)
        try:
            await application.store.write(write)
        except Exception:
            # The use goes on, and so does its record once the database answers again.
            log.exception("a use that goes on could not be recorded")
