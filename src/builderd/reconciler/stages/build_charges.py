"""Charges for builds: recorded before a build starts, so that a kill of the service does not make it free."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

from builderd.domain.builders import Builder
from builderd.domain.errors import EngineUnavailable, MachineFault, NoCapacity
from builderd.domain.ids import new_id
from builderd.domain.layers import BUILD_RESOURCES, BuildOutcome
from builderd.domain.prices import OpenBuild
from builderd.ports.store import UnitOfWork
from builderd.reconciler.core.every import every
from builderd.services import ledger
from builderd.services.application import Application

#: Seconds between two records that a build still runs: what a kill of the service leaves uncharged at most.
SEEN_INTERVAL = 5.0

log = logging.getLogger(__name__)


async def charged(app: Application, builder: Builder, building: Callable[[], Awaitable[BuildOutcome]]) -> BuildOutcome:
    """Wait for the build and charge its time, also if it fails or is cancelled, but not if the machine fails."""
    now = app.clock.now()
    build = OpenBuild(new_id(), builder.tenant_id, builder.id, now, now)
    seeing: asyncio.Task[None] | None = None
    try:
        await app.store.write(lambda uow: uow.open_builds.add(build))
        seeing = asyncio.create_task(
            every(SEEN_INTERVAL, lambda: _see(app, build), event="record of a build", wait_first=True)
        )
        outcome = await building()
    except (MachineFault, NoCapacity, EngineUnavailable):
        await asyncio.shield(_end(app, build, is_paid=False))
        raise
    except BaseException:
        await asyncio.shield(_end(app, build, is_paid=True))
        raise
    finally:
        if seeing is not None:
            seeing.cancel()
    await _end(app, build, is_paid=not outcome.reused)
    return outcome


async def close_cut_builds(app: Application) -> None:
    """Charge the builds that ended with an earlier process of this service, up to when they were last seen."""
    longest = timedelta(seconds=app.limits.build_timeout)

    def close(uow: UnitOfWork) -> int:
        cut = uow.open_builds.all()
        for build in cut:
            # The clock may have been set forward in between.
            end = min(max(build.seen_at, build.started_at), build.started_at + longest)
            _remove(uow, app, replace(build, seen_at=end), is_paid=True)
        return len(cut)

    if count := await app.store.write(close):
        log.info("builds cut off by the end of the service were charged builds=%d", count)


async def _see(app: Application, build: OpenBuild) -> None:
    now = app.clock.now()
    await app.store.write(lambda uow: uow.open_builds.seen(build.id, now))


async def _end(app: Application, build: OpenBuild, *, is_paid: bool) -> None:
    ended = replace(build, seen_at=max(app.clock.now(), build.started_at))
    await app.store.write(lambda uow: _remove(uow, app, ended, is_paid=is_paid))


def _remove(uow: UnitOfWork, app: Application, build: OpenBuild, *, is_paid: bool) -> None:
    builder = uow.builders.get(build.builder_id)
    if uow.open_builds.remove(build.id) and is_paid and builder is not None:
        ledger.bill_trial(uow, app.prices, builder, BUILD_RESOURCES, build.started_at, build.seen_at)
