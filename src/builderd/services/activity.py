"""Activity: what counts as use of a builder, and keeps it from being frozen and stopped.

A visit, an open connection to its preview, a command, an SSH session, the files, a start. Not: what the app itself
sends, and whoever only looks at its record or its logs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime

from builderd.domain.builders import Builder
from builderd.domain.ids import BuilderId, SandboxId
from builderd.ports.store import UnitOfWork
from builderd.services.application import Application

#: How often a use that goes on is written down, in seconds; more often where things are frozen sooner.
INTERVAL = 15.0


def touch(uow: UnitOfWork, builder_id: BuilderId, at: datetime) -> Builder | None:
    """Record that it was used then; None when it is gone. Wakes nothing: that is ``services.wake``.

    Call it again from time to time while a use goes on, such as an open session.
    """
    builder = uow.builders.get(builder_id, lock=True)
    return None if builder is None else used(uow, builder, at)


def used(uow: UnitOfWork, builder: Builder, at: datetime) -> Builder:
    """The same for one that is locked already. Never earlier than it was used before."""
    if builder.last_active_at is not None and builder.last_active_at >= at:
        return builder
    touched = replace(builder, last_active_at=at)
    uow.builders.save(touched)
    return touched


@asynccontextmanager
async def going_on(application: Application, sandbox: SandboxId) -> AsyncIterator[None]:
    """The sandbox's builder is used for as long as the block lasts: by a command, a session."""
    task = asyncio.create_task(_keep_touching(application, sandbox))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _keep_touching(application: Application, sandbox: SandboxId) -> None:
    freeze_after = application.limits.freeze_after
    interval = min(INTERVAL, freeze_after / 3) if freeze_after else INTERVAL

    def write(uow: UnitOfWork) -> None:
        record = uow.sandboxes.get(sandbox)
        if record is not None:
            touch(uow, record.builder_id, application.clock.now())

    while True:
        await asyncio.sleep(interval)
        await application.store.write(write)
