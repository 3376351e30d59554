"""The worker: holds the claim on one builder and takes step after step until there is nothing to do."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from builderd.domain.builders import Builder, Desired
from builderd.domain.errors import BuilderdError, EngineUnavailable, NoCapacity
from builderd.domain.ids import BuilderId
from builderd.domain.steps import AwaitListening, CheckApp, Install, Observed, Step, StopSandbox, Wait, next_step
from builderd.ports.store import UnitOfWork
from builderd.reconciler import records
from builderd.reconciler.claim import Claim
from builderd.reconciler.faults import FaultPoint
from builderd.reconciler.look import Known, Subject, look, read
from builderd.reconciler.race import race
from builderd.reconciler.records import ClaimLost
from builderd.reconciler.steps import Result, Steps
from builderd.services.application import Application

#: How often a long step looks whether something else is wanted by now, in seconds; a poke makes it look at once.
OVERTAKEN_INTERVAL = 1.0
#: After a step failed for a reason of the machine: so many seconds, doubled each time, at most the last.
FIRST_RETRY, LAST_RETRY = 0.5, 60.0
#: A run that has no outcome yet is given up after so many such failures.
MAX_TROUBLES = 4
#: A step that is chosen so many times in a row does not change anything.
MAX_REPEATS = 20
#: Steps that are carried out at the same time, but for those that mostly wait.
MAX_TURNS = 32

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Crew:
    """What the workers of one reconciler share. ``troubles`` counts the failures since a builder last was at rest."""

    steps: Steps
    fault: FaultPoint
    #: Told of each builder that is at rest.
    settled: Callable[[Subject], None]
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_TURNS))
    troubles: Counter[BuilderId] = field(default_factory=Counter)


class Worker:
    """Works on one builder for as long as there is something to do. ``poke`` makes it look again."""

    def __init__(self, application: Application, builder_id: BuilderId, crew: Crew) -> None:
        self._app = application
        self._id = builder_id
        self._crew = crew
        self._again = asyncio.Event()
        self._last: Step | None = None
        self._repeats = 0

    def poke(self) -> None:
        """Something changed: look again before resting."""
        self._again.set()

    @property
    def poked(self) -> bool:
        return self._again.is_set()

    async def run(self) -> None:
        """Claim, work, release."""
        claim = Claim(self._app, self._id)
        # Unless the work comes to an end, whoever takes it next has something to do at once.
        due: datetime | None = self._app.clock.now()
        try:
            if await claim.take():
                due = await race(self._work(), claim.hold())
        except ClaimLost:
            log.info("the claim on builder %s was lost", self._id)
        finally:
            await claim.release(due)

    async def _work(self) -> datetime | None:
        """Until there is nothing to do; answers when there will be again."""
        known: Known | None = None
        while True:
            try:
                if known is None or self.poked:
                    known = await self._read()
                if known is None:
                    return None
                seen = await look(self._app, known)
                step = next_step(known.subject.builder, seen)
                if isinstance(step, Wait):
                    self._crew.troubles.pop(self._id, None)
                    self._crew.settled(known.subject)
                    return step.until
                self._check_progress(step)
                known = await self._take(known, seen, step)
            except ClaimLost:
                raise
            except Exception as error:
                known = None
                due = await self._trouble(error)
                if due is not None:
                    return due

    async def _read(self) -> Known | None:
        self._again.clear()
        return await self._app.store.read(lambda uow: read(uow, self._id))

    def _check_progress(self, step: Step) -> None:
        self._repeats = self._repeats + 1 if step == self._last else 0
        self._last = step
        if self._repeats >= MAX_REPEATS:
            self._repeats = 0
            raise RuntimeError(f"nothing comes of {type(step).__name__}")

    async def _take(self, known: Known, seen: Observed, step: Step) -> Known | None:
        """Do and record one step; what is recorded afterwards, None when that must be read again."""
        name = type(step).__name__
        self._crew.fault(f"{name}.begun")
        result = await self._perform(known.subject, seen, step)
        if result is None:
            return None
        self._crew.fault(f"{name}.done")
        after: Known | None = known
        if result.record is not None:
            after = await records.apply(self._app, self._id, result.record)
            if not result.quiet:
                self._app.signals.change(self._id)
        self._crew.fault(f"{name}.recorded")
        await result.afterwards()
        return after

    async def _perform(self, subject: Subject, seen: Observed, step: Step) -> Result | None:
        """None when it was broken off, since something else is wanted by now."""
        async with (
            nullcontext() if isinstance(step, Install | AwaitListening | CheckApp | StopSandbox) else self._crew.turns
        ):
            work = self._crew.steps.perform(subject, seen, step)
            if isinstance(step, Install | AwaitListening | CheckApp):
                return await race(work, self._overtaken(subject.builder))
            return await work

    async def _overtaken(self, looked_at: Builder) -> None:
        """Returns when something else is wanted than what was looked at."""
        wanted: Builder | None = looked_at
        while wanted is not None and records.same_wish(wanted, looked_at):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._again.wait(), OVERTAKEN_INTERVAL)
            self._again.clear()
            wanted = await self._app.store.read(lambda uow: uow.builders.get(self._id))

    # Troubles

    async def _trouble(self, error: Exception) -> datetime | None:
        """When to try again; None to look again at once, after the run was given up."""
        self._crew.troubles[self._id] += 1
        troubles = self._crew.troubles[self._id]
        log.warning("builder %s: a step failed (%d since it was at rest)", self._id, troubles, exc_info=error)
        builder = await self._app.store.read(lambda uow: uow.builders.get(self._id))
        hopeless = isinstance(error, NoCapacity) or troubles >= MAX_TROUBLES
        if hopeless and builder is not None and builder.desired is Desired.RUNNING and not builder.settled:
            await self._give_up(builder, error)
            return None
        delay = min(FIRST_RETRY * 2 ** min(troubles - 1, 10), LAST_RETRY)
        return self._app.clock.now() + timedelta(seconds=delay)

    async def _give_up(self, looked_at: Builder, error: Exception) -> None:
        """The run has failed for a reason of the machine, not of the app."""
        code = error.code if isinstance(error, NoCapacity) else EngineUnavailable.code
        reason = error.message if isinstance(error, BuilderdError) else "The service failed at it; its log says why."
        now = self._app.clock.now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            version = uow.versions.get(builder.id, builder.version)
            assert version is not None, "a builder's current version is always stored"
            if records.same_wish(builder, looked_at):
                records.failed(uow, builder, version, code=code, reason=reason, now=now)

        await records.apply(self._app, self._id, record)
        self._app.signals.change(self._id)
        self._crew.troubles.pop(self._id, None)
