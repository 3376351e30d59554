"""Shared by the steps Install and BuildApp: how many run at once, what they print, and what they cost."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from builderd.application import Application
from builderd.builders.model import Builder
from builderd.core.errors import is_by_machine
from builderd.core.ids import TenantId, new_id
from builderd.core.loops import every
from builderd.credentials.model import Masker
from builderd.database.unit_of_work import UnitOfWork
from builderd.dependencies.model import BUILD_RESOURCES, BuildOutcome, LayerPlan
from builderd.money import service as spending
from builderd.money.model import OpenBuild
from builderd.reconciler.observe import WorkItem
from builderd.sandboxes.model import LogLine, LogStream

#: How often the lines of a build are written down while it continues, in seconds.
FLUSH_INTERVAL = 0.3
#: What is kept of one build's lines, and of one line: what a build prints is the user's own, and could be endless.
MAX_LINES, MAX_CHARACTERS = 5_000, 1_000
#: Layers that are made at the same time, and those of one tenant among them.
MAX_BUILDS, MAX_OF_TENANT = 8, 2
#: Seconds between two records that a build still runs: what a kill of the service leaves uncharged at most.
SEEN_INTERVAL = 5.0
#: Seconds between two tries to write the end of a build.
RETRY_INTERVAL = 5.0

T = TypeVar("T")
log = logging.getLogger(__name__)


class Builds:
    """Builds layers, a few at once, with a limit for each tenant so that it does not delay others."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._charges = BuildCharges(application)
        self._concurrency = asyncio.Semaphore(MAX_BUILDS)
        self._tenant_concurrency: defaultdict[TenantId, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(MAX_OF_TENANT)
        )

    @asynccontextmanager
    async def slot(self, tenant: TenantId) -> AsyncIterator[None]:
        """Wait until one more of this tenant's builds may run."""
        async with self._tenant_concurrency[tenant], self._concurrency:
            yield

    async def run(self, builder: Builder, plan: LayerPlan, log: BuildLog) -> BuildOutcome:
        """Make the layer. Only what runs no code of a package is free."""
        if not plan.needs_review_first:
            return await self._app.engine.layers.build_layer(plan, log.line)
        return await self._charges.charged(builder, lambda: self._app.engine.layers.build_layer(plan, log.line))


def own_key(plan: LayerPlan, item: WorkItem) -> LayerPlan:
    """A builder that was once installed afresh has layers of its own from then on."""
    since = item.version.fresh_since
    if since is None:
        return plan
    key = hashlib.sha256(f"{plan.key}\n{item.builder.id}\n{since}".encode()).hexdigest()
    return replace(plan, key=key, below=plan.below and own_key(plan.below, item))


class BuildLog:
    """Collects lines and writes them to the store from time to time, so that a follower sees progress."""

    def __init__(self, application: Application, item: WorkItem, masker: Masker | None = None) -> None:
        self._application = application
        self._subject = item
        self._masker = masker or Masker(())
        self._lines: list[LogLine] = []
        self._taken = 0

    async def __aenter__(self) -> BuildLog:
        async def flush_often() -> None:
            while True:
                await asyncio.sleep(FLUSH_INTERVAL)
                await self._flush()

        self._flusher = asyncio.create_task(flush_often())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._flusher.cancel()
        await asyncio.gather(self._flusher, return_exceptions=True)
        await self._flush()

    def line(self, text: str) -> None:
        """Take one line; its time is now. What is too much is left out, and a line says so."""
        self._taken += 1
        if self._taken > MAX_LINES:
            return
        if self._taken == MAX_LINES:
            text = "… what else it wrote is left out."
        text = self._masker.text(text)
        shown = text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"
        self._lines.append(LogLine(self._application.clock.now(), LogStream.BUILD, shown))

    async def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            builder, number = self._subject.builder.id, self._subject.version.number
            await self._application.store.write(lambda uow: uow.build_logs.add(builder, number, lines))
            self._application.signals.change(builder)


class BuildCharges:
    """Charge builds at their ends; what the store does not take then is written in the background, once it does.

    A build is what runs a tenant's or a stranger's code beside the app: a version's build command, an install that may
    run code of packages, a QA report on a copy of the app. It is recorded before it starts, so that a kill of the
    service does not make it free.
    """

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
