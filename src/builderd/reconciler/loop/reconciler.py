"""The reconciler: one worker for each builder whose desired state changed or that is due."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial

from builderd.domain.builders import Desired, Status
from builderd.domain.errors import StoreUnavailable
from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.sandboxes import Sandbox
from builderd.reconciler.core.loops import FaultPoint, every, no_fault
from builderd.reconciler.core.observe import WorkItem
from builderd.reconciler.jobs import spending
from builderd.reconciler.jobs.compilation import BytecodeCompilation
from builderd.reconciler.jobs.members import Evacuation, LostMembers
from builderd.reconciler.jobs.reporting import Reporting
from builderd.reconciler.loop.steps import Steps
from builderd.reconciler.loop.sweep import sweep
from builderd.reconciler.loop.worker import LEASE, MAX_CONCURRENT_STEPS, Worker, WorkerContext
from builderd.reconciler.stages.build_charges import close_cut_builds
from builderd.services import preview_links
from builderd.services.application import Application

#: How long a builder may be due before it is checked, in seconds.
POLL_INTERVAL = 0.5
#: How many builders one poll takes up at most.
BATCH = 100
#: How often everything is checked, whether or not anything is known to have changed, in seconds.
SWEEP_INTERVAL = 300.0
#: How often the proxy's preview links are compared with the store's, in seconds.
LINKS_INTERVAL = 15.0
#: How often members of the cluster that were lost, or have returned, are looked for, in seconds.
MEMBERS_INTERVAL = 5.0
#: After the exits could not be watched, or one not looked up: how long until the next try, in seconds.
RETRY_INTERVAL = 1.0

log = logging.getLogger(__name__)


class Reconciler:
    """Reconciler loop: ``run`` continues until cancelled; then the workers release their claims."""

    def __init__(self, application: Application, fault: FaultPoint = no_fault) -> None:
        self._app = application
        limit = asyncio.Semaphore(MAX_CONCURRENT_STEPS)
        self._context = WorkerContext(Steps(application), fault, self._settled, limit)
        self._workers: dict[BuilderId, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: When builders are looked at again whose worker failed: without the store neither a claim nor a due time of
        #: theirs may be stored.
        self._retry_at: dict[BuilderId, datetime] = {}
        self._compilation = BytecodeCompilation(application)
        self._reporting = Reporting(application, fault)
        self._members = LostMembers(application)
        self._evacuation = Evacuation(application)

    async def run(self) -> None:
        """Sweep once, then work on builders that changed or are due, and sweep again periodically."""
        await self._release_claims()
        await close_cut_builds(self._app)
        try:
            await self._sweep()
        except Exception:
            log.warning("sweep failed, retrying in 300 s", exc_info=True)
        check_spending = partial(spending.check_due, self._app, self._context.fault)
        helpers = [
            asyncio.create_task(work)
            for work in (
                every(RETRY_INTERVAL, self._watch_exits, event="exit watcher"),
                every(SWEEP_INTERVAL, self._sweep, event="sweep", wait_first=True),
                self._compilation.run(),
                self._reporting.run(),
                every(LINKS_INTERVAL, partial(preview_links.sync, self._app), event="preview links"),
                every(POLL_INTERVAL, check_spending, event="spending check"),
                every(MEMBERS_INTERVAL, self._members.check, event="check of members"),
                every(MEMBERS_INTERVAL, self._evacuation.check, event="evacuation"),
            )
        ]
        try:
            next_poll = 0.0
            while True:
                changed = await self._app.signals.desired_changes(POLL_INTERVAL)
                self._wake(changed)
                if time.monotonic() >= next_poll:
                    # One that was woken just now has not taken its claim yet, and will see what made it due.
                    self._wake(one for one in (*await self._due(), *self._retries()) if one not in changed)
                    next_poll = time.monotonic() + POLL_INTERVAL
        finally:
            for task in (*helpers, *self._tasks):
                task.cancel()
            await asyncio.gather(*helpers, *self._tasks, return_exceptions=True)
            await self._context.steps.close()

    async def _release_claims(self) -> None:
        """Release claims left by a previous process of this instance."""
        now, owner = self._app.clock.now(), self._app.instance
        for left in await self._app.store.write(lambda uow: uow.builders.release_all(owner, now)):
            await self._app.store.write(lambda uow, left=left: uow.builders.release(left, owner, now))  # type: ignore[misc]

    async def _due(self) -> Sequence[BuilderId]:
        try:
            return await self._app.store.read(lambda uow: uow.builders.due(self._app.clock.now(), BATCH))
        except Exception:
            log.warning("poll for due builders failed, retrying in 0.5 s", exc_info=True)
            return ()

    def _retries(self) -> Sequence[BuilderId]:
        now = self._app.clock.now()
        found = [one for one, at in self._retry_at.items() if at <= now]
        for one in found:
            del self._retry_at[one]
        return found

    def _wake(self, builders: Iterable[BuilderId]) -> None:
        for builder_id in builders:
            worker = self._workers.get(builder_id)
            if worker is not None:
                worker.request_pass()
                continue
            worker = self._workers[builder_id] = Worker(self._app, builder_id, self._context)
            task = asyncio.create_task(self._work(builder_id, worker))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, builder_id: BuilderId, worker: Worker) -> None:
        try:
            await worker.run()
        except Exception:
            log.exception("worker failed builder=%s retry_seconds=%.0f", builder_id, LEASE.total_seconds())
            self._retry_at[builder_id] = self._app.clock.now() + LEASE
        finally:
            del self._workers[builder_id]
            if worker.pass_requested:
                self._app.signals.desired_changed(builder_id)

    def _settled(self, item: WorkItem) -> None:
        self._reporting.request_report()
        if item.builder.desired is Desired.RUNNING and item.builder.status is Status.RUNNING:
            self._compilation.add(item)

    async def _sweep(self) -> None:
        await sweep(self._app, self._workers)

    async def _watch_exits(self) -> None:
        async for sandbox_id in self._app.engine.sandboxes.exits():
            sandbox = await self._read_ended(sandbox_id)
            if sandbox is not None:
                self._app.signals.desired_changed(sandbox.builder_id)

    async def _read_ended(self, sandbox_id: SandboxId) -> Sandbox | None:
        """Return a sandbox once the store answers: the engine tells an exit once, and the sweep may be far off."""
        while True:
            try:
                return await self._app.store.read(lambda uow: uow.sandboxes.get(sandbox_id))
            except StoreUnavailable as error:
                log.warning("exit not looked up, retrying in 1 s sandbox=%s error=%s", sandbox_id, error)
                await asyncio.sleep(RETRY_INTERVAL)
