"""The first start of a builder: its disk is made beside the review, and recorded with what is recorded before it.

A caller waits for all of it. Writing files runs none of them, so the disk needs no verdict; a builder's first disk can
replace nothing. One transaction records the end of the review or of the installation, the disk, and the sandbox that is
started next: each on its own would add the store's round trip.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from builderd.domain.builders import Builder
from builderd.domain.errors import BuilderdError, InstallFailed, NoCapacity
from builderd.domain.next_step import next_step
from builderd.domain.steps import Observation, PlanSandbox
from builderd.domain.versions import NO_BUILD
from builderd.linux.threads import completed
from builderd.reconciler.core import sandbox_transitions, transitions
from builderd.reconciler.core.observe import WorkItem
from builderd.reconciler.stages.starting import new_sandbox
from builderd.services.application import Application
from builderd.services.bundles import SharedFetch
from builderd.store import UnitOfWork

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlannedStart:
    """A made disk and a sandbox to be recorded with the step before."""

    application: Application
    item: WorkItem

    def record(self, uow: UnitOfWork, builder: Builder, now: datetime, *, holds: bool) -> None:
        """Record both if the outcome that they were planned for ``holds``. The builder is locked."""
        if not holds:
            return
        item = self.item
        sandbox_transitions.disk_made(uow, builder, item, self.application.prices, now)
        uow.sandboxes.add(new_sandbox(uow, item, item.disk, now))
        transitions.stage_started(uow, builder, "start", now)


class FirstStart:
    """Makes first disks early, and plans the starts on them, with the application's ports."""

    def __init__(self, application: Application, limit: asyncio.Semaphore) -> None:
        self._app = application
        #: Shared with the steps that make disks, and held while one is made.
        self._limit = limit

    @asynccontextmanager
    async def disk_beside(
        self, item: WorkItem, observation: Observation, bundle: SharedFetch | None = None
    ) -> AsyncIterator[None]:
        """Make a builder's first disk with the version's files while the block runs; wait for it at the end.

        A block that fails or is cancelled leaves none; its error is raised even where the disk cannot be deleted. After
        a fault that passes, the space stays held for the next try.
        """
        if not _is_first(item, observation):
            yield
            return
        try:
            async with completed(self._make_disk(item, bundle or SharedFetch(self._app, item.version))):
                yield
        except BaseException as error:
            await self.drop_disk(item, observation)
            if isinstance(error, Exception) and not isinstance(error, InstallFailed):
                await self._hold_again(item)
            raise

    async def _make_disk(self, item: WorkItem, bundle: SharedFetch) -> None:
        """Make the disk. A failure is left to the steps for it, which come again and tell it."""
        if await self._app.engine.disk(item.disk) is not None:
            return
        try:
            async with self._limit:
                files = await bundle()  # in its turn: nothing that waits has a bundle in memory
                await self._app.engine.create_disk(item.disk, item.version.settings.resources.disk_bytes)
                await self._app.engine.put_bundle(item.disk, files, None, NO_BUILD)
        except (BuilderdError, OSError) as error:
            log.info("disk not made beside the review builder=%s error=%s", item.builder.id, error)

    async def drop_disk(self, item: WorkItem, observation: Observation) -> None:
        """Delete the first disk of a version that fails, before that is recorded: nobody looks for it afterwards.

        An error is only logged: it must not hide how the step ended.
        """
        if not _is_first(item, observation):
            return
        try:
            await self._app.engine.delete_disk(item.disk)
        except Exception:
            log.warning("unrecorded disk not deleted builder=%s disk=%s", item.builder.id, item.disk, exc_info=True)

    async def _hold_again(self, item: WorkItem) -> None:
        """Hold the space that was given back with the disk: the builder is still wanted, and the step comes again."""
        size = item.version.settings.resources.disk_bytes
        try:
            await asyncio.to_thread(self._app.engine.hold_disk, item.disk, size)
        except NoCapacity as error:
            log.info("space not held for the next try builder=%s error=%s", item.builder.id, error)

    async def plan(self, item: WorkItem, observation: Observation) -> PlannedStart | None:
        """Return the start that comes next once the version has passed and has a layer; None if another step does."""
        version, wanted = observation.version, item.version.settings.resources
        disk = await self._app.engine.disk(item.disk) if _is_first(item, observation) else None
        if disk is None:
            return None
        seen = replace(
            observation,
            now=self._app.clock.now(),
            version=replace(version, review_due=False, layer_ready=True),
            disk_ready=disk.size_bytes == wanted.disk_bytes,
            disk_bundle=disk.bundle_hash,
            disk_build=disk.build_key,
            loss_due=False,
        )
        if next_step(item.builder, seen) != PlanSandbox(attempt=1):
            return None
        return PlannedStart(self._app, item)


def _is_first(item: WorkItem, observation: Observation) -> bool:
    """Return True for the first version of a builder that never had a disk: no backup or candidate has to do with it.

    With a build command its files come from the build, which comes later.
    """
    builder, version = item.builder, item.version
    is_new = builder.generation == 1 and not builder.disk_is_made and not builder.disk_has_data
    return (
        is_new
        and builder.candidate is None
        and version.number == observation.version.number
        and not version.settings.build
    )
