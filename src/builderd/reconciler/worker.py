"""The worker: holds the claim on one builder and takes step after step until there is nothing to do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta

from builderd.domain.builders import Builder, Desired
from builderd.domain.errors import BuilderdError, EngineUnavailable, NoCapacity
from builderd.domain.ids import BuilderId
from builderd.domain.steps import AwaitListening, Install, Observed, Step, Wait, next_step
from builderd.ports.store import UnitOfWork
from builderd.reconciler import records
from builderd.reconciler.faults import FaultPoint
from builderd.reconciler.look import Subject, look
from builderd.reconciler.records import ClaimLost
from builderd.reconciler.steps import Result, Steps
from builderd.services.application import Application

LEASE = timedelta(seconds=30)
RENEW_INTERVAL = 10.0
#: After a step failed for a reason of the machine: so many seconds, doubled each time, at most the last.
FIRST_RETRY, LAST_RETRY = 0.5, 60.0
#: A run that has no outcome yet is given up after so many such failures in a row.
MAX_TROUBLES = 4

log = logging.getLogger(__name__)


class Worker:
    """Works on one builder for as long as there is something to do. ``poke`` makes it look again."""

    def __init__(self, application: Application, builder_id: BuilderId, owner: str, fault: FaultPoint) -> None:
        self._app = application
        self._id = builder_id
        self._owner = owner
        self._fault = fault
        self._steps = Steps(application)
        self._again = asyncio.Event()
        self._troubles = 0

    def poke(self) -> None:
        """Something changed: look again before resting."""
        self._again.set()

    @property
    def poked(self) -> bool:
        return self._again.is_set()

    async def run(self, settled: Callable[[Subject], None]) -> None:
        """Claim, work, release. ``settled`` is told of each subject that was left running."""
        if not await self._claim():
            return
        renewal = asyncio.create_task(self._renew())
        due: datetime | None = self._app.clock.now()
        try:
            due = await self._work(settled)
        except ClaimLost:
            log.info("builder %s was taken over by another control plane", self._id)
        finally:
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)
            await self._app.store.write(lambda uow: uow.builders.release(self._id, self._owner, due))

    async def _work(self, settled: Callable[[Subject], None]) -> datetime | None:
        while True:
            self._again.clear()
            try:
                sight = await look(self._app, self._id)
                if sight is None:
                    return None
                subject, seen = sight
                step = next_step(subject.builder, seen)
                if isinstance(step, Wait):
                    settled(subject)
                    return step.until
                await self._take(subject, seen, step)
                self._troubles = 0
            except ClaimLost:
                raise
            except Exception as error:
                due = await self._trouble(error)
                if due is not None:
                    return due

    async def _take(self, subject: Subject, seen: Observed, step: Step) -> None:
        name = type(step).__name__
        self._fault(f"{name}.begun")
        result = await self._interruptible(subject, self._steps.perform(subject, seen, step), step)
        if result is None:
            return
        self._fault(f"{name}.done")
        if result.record is not None:
            await records.apply(self._app, self._owner, self._id, result.record)
        self._fault(f"{name}.recorded")
        await result.afterwards()

    async def _interruptible(self, subject: Subject, work: Awaitable[Result], step: Step) -> Result | None:
        """The work's result, or None when it was broken off since something else is wanted by now."""
        if not isinstance(step, Install | AwaitListening):
            return await work
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                poke = asyncio.ensure_future(self._again.wait())
                await asyncio.wait({task, poke}, return_when=asyncio.FIRST_COMPLETED)
                poke.cancel()
                if not task.done() and await self._overtaken(subject.builder):
                    return None
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _overtaken(self, looked_at: Builder) -> bool:
        self._again.clear()
        builder = await self._app.store.read(lambda uow: uow.builders.get(self._id))
        return builder is None or not records.same_wish(builder, looked_at)

    async def _trouble(self, error: Exception) -> datetime | None:
        """When to try again; None to look again at once, after the run was given up."""
        self._troubles += 1
        log.warning("builder %s: a step failed (%d in a row)", self._id, self._troubles, exc_info=error)
        builder = await self._app.store.read(lambda uow: uow.builders.get(self._id))
        hopeless = isinstance(error, NoCapacity) or self._troubles >= MAX_TROUBLES
        if builder is not None and builder.desired is Desired.RUNNING and not builder.settled and hopeless:
            await self._give_up(builder, error)
            return None
        delay = min(FIRST_RETRY * 2 ** (self._troubles - 1), LAST_RETRY)
        return self._app.clock.now() + timedelta(seconds=delay)

    async def _give_up(self, looked_at: Builder, error: Exception) -> None:
        """The run has failed for a reason of the machine, not of the app."""
        code = error.code if isinstance(error, NoCapacity) else EngineUnavailable.code
        reason = error.message if isinstance(error, BuilderdError) else f"The engine failed: {error}"
        now = self._app.clock.now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            version = uow.versions.get(builder.id, builder.version)
            assert version is not None, "a builder's current version is always stored"
            if records.same_wish(builder, looked_at):
                records.failed(uow, builder, version, code=code, reason=reason, now=now)

        await records.apply(self._app, self._owner, self._id, record)

    async def _claim(self) -> bool:
        now = self._app.clock.now()
        return await self._app.store.write(lambda uow: uow.builders.claim(self._id, self._owner, now, now + LEASE))

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_INTERVAL)
            await self._claim()
