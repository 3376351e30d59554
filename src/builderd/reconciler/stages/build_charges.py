"""Charges for builds: recorded before a build starts, so that a kill of the service does not make it free.

A build is what runs a tenant's or a stranger's code beside the app: a version's build command, an install that may run
code of packages, a QA report on a copy of the app.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from builderd.domain.builders import Builder
from builderd.domain.errors import is_by_machine
from builderd.domain.ids import new_id
from builderd.domain.layers import BUILD_RESOURCES, BuildOutcome
from builderd.domain.prices import OpenBuild
from builderd.reconciler.core.loops import every
from builderd.services import spending
from builderd.services.application import Application
from builderd.store import UnitOfWork

#: Seconds between two records that a build still runs: what a kill of the service leaves uncharged at most.
SEEN_INTERVAL = 5.0
#: Seconds between two tries to write the end of a build.
RETRY_INTERVAL = 5.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class BuildCharges:
    """Charges builds at their ends; what the store does not take then is written in the background, once it does."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._unwritten: set[asyncio.Task[None]] = set()

    async def charged(self, builder: Builder, building: Callable[[], Awaitable[T]]) -> T:
        """Wait for the build and charge its time, also if it fails or is cancelled, but not if the machine fails."""
        app, now = self._app, self._app.clock.now()
        build = OpenBuild(new_id(), builder.tenant_id, builder.id, now, now)
        seeing: asyncio.Task[None] | None = None

        async def see() -> None:
            seen_at = app.clock.now()
            await app.store.write(lambda uow: uow.open_builds.seen(build.id, seen_at))

        try:
            await app.store.write(lambda uow: uow.open_builds.add(build))
            seeing = asyncio.create_task(every(SEEN_INTERVAL, see, event="record of a build", wait_first=True))
            outcome = await building()
        except BaseException as error:
            await asyncio.shield(self._end(build, is_paid=not is_by_machine(error)))
            raise
        finally:
            if seeing is not None:
                seeing.cancel()
        await self._end(build, is_paid=not (isinstance(outcome, BuildOutcome) and outcome.reused))
        return outcome

    async def _end(self, build: OpenBuild, *, is_paid: bool) -> None:
        """Record the end. A failure of the store never hides how the build ended."""
        ended = replace(build, seen_at=max(self._app.clock.now(), build.started_at))
        if not await self._try_write(ended, is_paid=is_paid):
            retry = asyncio.create_task(self._retry(ended, is_paid=is_paid))
            self._unwritten.add(retry)
            retry.add_done_callback(self._unwritten.discard)

    async def _retry(self, build: OpenBuild, *, is_paid: bool) -> None:
        while True:
            await asyncio.sleep(RETRY_INTERVAL)
            if await self._try_write(build, is_paid=is_paid):
                return

    async def _try_write(self, build: OpenBuild, *, is_paid: bool) -> bool:
        try:
            await self._app.store.write(lambda uow: _remove(uow, self._app, build, is_paid=is_paid))
        except Exception:
            log.warning(
                "record of a build's end failed retry_seconds=%g build=%s", RETRY_INTERVAL, build.id, exc_info=True
            )
            return False
        return True


async def close_cut_builds(app: Application) -> None:
    """Charge the builds of an earlier process of this service whose end the store does not know.

    Each is charged up to when it was last seen.
    """
    longest = timedelta(seconds=app.limits.build_timeout)

    def close(uow: UnitOfWork) -> int:
        cut = uow.open_builds.all()
        for build in cut:
            # The clock may have been set forward in between.
            end = min(max(build.seen_at, build.started_at), build.started_at + longest)
            _remove(uow, app, replace(build, seen_at=end), is_paid=True)
        return len(cut)

    if count := await app.store.write(close):
        log.info("builds of the service before were closed builds=%d", count)


def _remove(uow: UnitOfWork, app: Application, build: OpenBuild, *, is_paid: bool) -> None:
    builder = uow.builders.get(build.builder_id)
    if uow.open_builds.remove(build.id) and is_paid and builder is not None:
        spending.bill_trial(uow, app.prices, builder, BUILD_RESOURCES, build.started_at, build.seen_at)
