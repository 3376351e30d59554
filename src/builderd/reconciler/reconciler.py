"""The reconciler: one worker for each builder whose desired state changed or that is due, and the sweep.

A change of a desired state makes its builder due in the same transaction. The sweep is for what that cannot cover: a
sandbox that ended while nobody watched, a route that is gone or open, a builder that a fault left without a due time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container, Iterable, Sequence
from datetime import datetime
from functools import partial

from builderd.application import Application
from builderd.code import service as bundles
from builderd.core.errors import RecordDamaged, StoreUnavailable
from builderd.core.ids import BuilderId, SandboxId
from builderd.core.loops import FaultPoint, every, no_fault
from builderd.database.unit_of_work import UnitOfWork
from builderd.money.job import check_due
from builderd.previews import service as preview_links
from builderd.previews.model import RESTING_STATES
from builderd.reconciler.builds import close_cut_builds
from builderd.reconciler.members import Evacuation, LostMembers
from builderd.reconciler.worker import LEASE, MAX_CONCURRENT_STEPS, Steps, Worker, WorkerContext
from builderd.sandboxes.model import Sandbox

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
    """Reconciler loop: ``run`` continues until cancelled; then the workers release their claims.

    ``on_settled`` is called after each outcome of a builder.
    """

    def __init__(
        self, application: Application, fault: FaultPoint = no_fault, on_settled: Callable[[], None] = lambda: None
    ) -> None:
        self._app = application
        limit = asyncio.Semaphore(MAX_CONCURRENT_STEPS)
        self._context = WorkerContext(Steps(application), fault, on_settled, limit)
        self._workers: dict[BuilderId, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: When builders are looked at again whose worker failed: without the store neither a claim nor a due time of
        #: theirs may be stored.
        self._retry_at: dict[BuilderId, datetime] = {}
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
        check_spending = partial(check_due, self._app, self._context.fault)
        helpers = [
            asyncio.create_task(work)
            for work in (
                every(RETRY_INTERVAL, self._watch_exits, event="exit watcher"),
                every(SWEEP_INTERVAL, self._sweep, event="sweep", wait_first=True),
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
                worker.again.set()
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
            if worker.again.is_set():
                self._app.signals.desired_changed(builder_id)

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


#: Builders that are made due in one transaction.
DUE_BATCH = 500


async def sweep(application: Application, busy: Container[BuilderId]) -> None:
    """Make builders due that are not at rest, and remove sandboxes, routes and bundles that nothing refers to.

    Sandboxes of ``busy`` builders are left to those who work on them.
    """
    now = application.clock.now()
    await _make_due(application, await application.store.read(lambda uow: uow.builders.restless()), now)
    await _sweep_sandboxes(application, busy)
    await _sweep_routes(application, now)
    await _sweep_bundles(application)
    await bundles.expire(application)


async def _make_due(application: Application, found: Sequence[BuilderId], now: datetime) -> None:
    """Make builders due, so many in one transaction that others never wait long for the store's one writer."""
    for start in range(0, len(found), DUE_BATCH):
        batch = found[start : start + DUE_BATCH]
        for left in await application.store.write(lambda uow, batch=batch: uow.builders.make_all_due(batch, now)):  # type: ignore[misc]
            await application.store.write(lambda uow, left=left: uow.builders.make_due(left, now))  # type: ignore[misc]


async def _sweep_sandboxes(application: Application, busy: Container[BuilderId]) -> None:
    """Remove leaked sandboxes."""
    found = [report.id for report in await application.engine.sandboxes.list_sandboxes()]
    held = [one for one in found if one not in application.scratch]
    stray = await application.store.read(lambda uow: [one for one in held if _is_stray(uow, one, busy)])
    await asyncio.gather(*(_remove(application, sandbox_id) for sandbox_id in stray))


def _is_stray(uow: UnitOfWork, sandbox_id: SandboxId, busy: Container[BuilderId]) -> bool:
    """Return whether a sandbox should be removed: no record knows it, or it has ended and its builder is not busy.

    Sandboxes are recorded before they start, so an unrecorded one is a leak.
    """
    try:
        sandbox = uow.sandboxes.get(sandbox_id)
    except RecordDamaged:
        return False
    return sandbox is None or (sandbox.end is not None and sandbox.builder_id not in busy)


async def _remove(application: Application, sandbox_id: SandboxId) -> None:
    log.info("removing leaked sandbox sandbox=%s", sandbox_id)
    await application.engine.sandboxes.stop(sandbox_id, application.limits.stop_grace)
    await application.engine.sandboxes.remove(sandbox_id)


async def _sweep_routes(application: Application, now: datetime) -> None:
    """Remove routes without a builder; make builders due whose route is missing or may lead to a sandbox."""
    # In this order: a route is put only for a builder that is stored already.
    held = await application.previews.routes()
    hosts = await application.store.read(lambda uow: uow.builders.hosts())
    for host in held:
        if host not in hosts:
            log.info("removing unused route host=%s", host)
            await application.previews.remove(host)
    unsure = [one for host, one in hosts.items() if host not in held or held[host].state not in RESTING_STATES]
    await _make_due(application, unsure, now)


async def _sweep_bundles(application: Application) -> None:
    held = await application.bundles.hashes()
    used = await application.store.read(lambda uow: uow.versions.used_bundles(held))
    for bundle_hash in set(held).difference(used):
        log.info("removing unused bundle bundle=%s", bundle_hash)
        await bundles.drop_unused(application, bundle_hash)
