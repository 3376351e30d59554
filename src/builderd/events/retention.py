"""Retention: remove unused layers and old records periodically, and sooner when space runs out.

Nothing in use is removed: layers of versions that a builder may still run are kept, and the engine keeps layers that a
sandbox has mounted or a caller just asked for. ``code/service`` removes bundles, whose lock is kept between storing
one and referring to it. Records are removed a few at a time, so that they do not block the store's one writer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from builderd.application import Application
from builderd.core.errors import BuilderdError
from builderd.core.loops import every
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM, Event
from builderd.versions import service as deployments

#: Between two rounds, and between two looks whether space runs out, in seconds.
INTERVAL, LOOK_INTERVAL = 3_600.0, 60.0
#: When space runs out, layers that were not asked for in so long are removed. A create uses its layer sooner.
UNUSED_WHEN_TIGHT = timedelta(hours=1)
#: Records that are removed in one transaction, and the pause before the next.
BATCH, PAUSE = 500, 0.05
#: Records of sandboxes that are kept of one run: more than have logs, and than may end before the run fails.
OF_A_RUN = 50
#: Lifetime of an idempotency key, as the API contract states it.
RETRY_KEYS = timedelta(hours=24)
#: Time that a review without a version is kept, in case the same code is deployed again.
REVIEWS = timedelta(days=1)

log = logging.getLogger(__name__)


class RetentionJob:
    """``run`` continues until it is cancelled. Several control planes on one database do no harm to each other."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._storage = StorageEvents(application)
        self._next_round = 0.0

    async def run(self) -> None:
        """A round at once, and then one an hour; space is checked in between."""
        await every(LOOK_INTERVAL, self._run_once, event="retention")

    async def _run_once(self) -> None:
        await self._storage.check()
        await self.release_failed_disks()
        if time.monotonic() >= self._next_round:
            self._next_round = time.monotonic() + INTERVAL
            await self.clean_up()
        elif self._app.engine.is_tight():
            await self.free_space()

    async def clean_up(self) -> None:
        """Clean up once: the engine's store, then the records."""
        try:
            await self._collect(self._app.retention.layers)
            if self._app.engine.is_tight():
                await self.free_space()
        except BuilderdError as error:
            log.warning("layer collection failed, retrying in the next round error=%s", error.message)
        await self._expire_records(self._app.clock.deletable())

    async def release_failed_disks(self) -> None:
        """Give back the disks of builders that failed long ago and never were up, a batch in each round."""
        before = self._app.clock.deletable() - self._app.retention.failed_disks
        for builder in await self._app.store.read(lambda uow: uow.builders.failed(before, BATCH)):
            now = self._app.clock.now()
            if await self._app.store.write(partial(deployments.release, builder_id=builder, now=now)):
                log.info("disk of a failed builder released builder=%s", builder)
                self._app.signals.desired_changed(builder)

    async def free_space(self) -> None:
        """Remove at once everything that is kept only for a possible reuse."""
        await self._collect(min(UNUSED_WHEN_TIGHT, self._app.retention.layers))

    async def _collect(self, unused: timedelta) -> None:
        # What a version comes to use from here on was asked for just before, and is kept for that.
        keep = await self._app.store.read(lambda uow: uow.versions.layers())
        gone = await self._app.engine.collect(keep, unused.total_seconds())
        if gone.layers or gone.bases or gone.scratch:
            log.info(
                "unused storage removed layers=%d bases=%d scratch=%d",
                len(gone.layers),
                len(gone.bases),
                gone.scratch,
            )

    async def _expire_records(self, now: datetime) -> None:
        retention = self._app.retention
        old, sent = now - retention.events, now - retention.deliveries
        await self._all(lambda uow: uow.events.expire(old, BATCH))
        await self._all(lambda uow: uow.sandboxes.expire(old, BATCH))
        await self._all(lambda uow: uow.sandboxes.delete_oldest(OF_A_RUN, BATCH))
        await self._all(lambda uow: uow.build_logs.expire(old, BATCH))
        await self._all(lambda uow: uow.reviews.expire(now - REVIEWS, BATCH))
        await self._all(lambda uow: uow.deliveries.expire(sent, BATCH))
        await self._app.store.write(lambda uow: uow.ssh_grants.expire(old))
        await self._app.store.write(lambda uow: uow.preview_links.expire(now))
        await self._app.store.write(lambda uow: uow.idempotency.expire(now - RETRY_KEYS))

    async def _all(self, expire: Callable[[UnitOfWork], int]) -> None:
        removed = BATCH
        while removed >= BATCH:
            removed = await self._app.store.write(expire)
            await asyncio.sleep(PAUSE)


UNAVAILABLE, AVAILABLE = "storage.unavailable", "storage.available"
_REASONS = {
    UNAVAILABLE: "The machine's storage is full or read-only: apps cannot write until its operator makes room.",
    AVAILABLE: "Apps can write to the machine's storage again.",
}


class StorageEvents:
    """Remembers what was reported last; after a restart of the service a fault that continues is reported again."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._reported = AVAILABLE

    async def check(self) -> None:
        """Write an event for each tenant with builders, where the state has changed."""
        readiness = self._app.engine.readiness()
        if readiness.engine_unreachable:
            # Its storage cannot be seen: what was reported last holds.
            return
        state = AVAILABLE if readiness.ready else UNAVAILABLE
        if state == self._reported:
            return
        if readiness.ready:
            log.info("storage available again")
        else:
            log.error("storage unavailable error=%s", readiness.message)
        await self._app.store.write(lambda uow: self._add(uow, state))
        self._reported = state

    def _add(self, uow: UnitOfWork, state: str) -> None:
        now = self._app.clock.now()
        for tenant in uow.builders.tenants():
            uow.events.add(Event(tenant, None, now, state, SYSTEM, _REASONS[state]))
