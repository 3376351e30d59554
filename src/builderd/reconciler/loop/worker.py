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
from builderd.domain.candidates import candidate_step
from builderd.domain.errors import BuilderdError, EngineUnavailable, MachineFault, NoCapacity, StoreUnavailable
from builderd.domain.ids import BuilderId
from builderd.domain.machine_faults import machine_fault
from builderd.domain.next_step import next_step
from builderd.domain.steps import (
    AwaitListening,
    CheckApp,
    Install,
    Observed,
    Review,
    Step,
    StopSandbox,
    TryCandidate,
    Wait,
)
from builderd.ports.store import UnitOfWork
from builderd.reconciler.core import records
from builderd.reconciler.core.claim import Claim
from builderd.reconciler.core.faults import FaultPoint
from builderd.reconciler.core.look import Known, Subject, look, read
from builderd.reconciler.core.race import race
from builderd.reconciler.core.records import ClaimLost
from builderd.reconciler.core.result import Result
from builderd.reconciler.loop.steps import Steps
from builderd.services.application import Application
from builderd.services.bundles import BundleLost

#: How often a long step looks whether something else is wanted by now, in seconds; a poke makes it look at once.
OVERTAKEN_INTERVAL = 1.0
#: After a step failed for a reason of the machine: so many seconds, doubled each time, at most the last.
FIRST_RETRY, LAST_RETRY = 0.5, 60.0
#: A run that has no outcome yet is given up after so many such failures.
MAX_TROUBLES = 4
#: A step that is chosen so many times in a row does not change anything.
MAX_REPEATS = 20
#: Steps that may take long, and give way to what is more urgent.
LONG = Review | Install | AwaitListening | CheckApp | TryCandidate
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
        #: Whether the present step is one beside what is wanted of the builder.
        self._is_beside = False

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
            self._again.clear()
            is_ours, known = await claim.take_and_read()
            if is_ours:
                due = await race(self._work(known), claim.hold())
        except ClaimLost:
            log.info("claim lost builder=%s", self._id)
        finally:
            await self._crew.steps.leave(self._id)
            await claim.release(due)

    async def _work(self, known: Known | None) -> datetime | None:
        """Until there is nothing to do; answers when there will be again. ``known`` is as the claim was taken."""
        while True:
            try:
                if known is None or self.poked:
                    known = await self._read()
                if known is None:
                    return None
                if known.subject.builder.starts:
                    self._app.engine.prewarm()
                seen = await look(self._app, known)
                step = next_step(known.subject.builder, seen)
                until = step.until if isinstance(step, Wait) else None
                self._is_beside = isinstance(step, Wait)
                if isinstance(step, Wait):
                    beside = candidate_step(known.subject.builder, seen)
                    if beside is None:
                        self._crew.troubles.pop(self._id, None)
                        self._crew.settled(known.subject)
                        return until
                    step = beside
                self._check_progress(step)
                known = await self._take(known, seen, step, until)
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

    async def _take(self, known: Known, seen: Observed, step: Step, until: datetime | None) -> Known | None:
        """Do and record one step; what is recorded afterwards, None when that must be read again.

        What is done beside gives way at ``until``.
        """
        name = type(step).__name__
        self._crew.fault(f"{name}.begun")
        result = await self._perform(known.subject, seen, step, until)
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

    async def _perform(self, subject: Subject, seen: Observed, step: Step, until: datetime | None) -> Result | None:
        """None when it was broken off, since something else is wanted by now."""
        async with nullcontext() if isinstance(step, LONG | StopSandbox) else self._crew.turns:
            work = self._crew.steps.perform(subject, seen, step)
            if not isinstance(step, LONG):
                return await work
            rival = self._called_away(subject.builder, until) if self._is_beside else self._overtaken(subject.builder)
            return await race(work, rival)

    async def _overtaken(self, looked_at: Builder) -> None:
        """Returns when something else is wanted than what was looked at."""
        wanted: Builder | None = looked_at
        while wanted is not None and records.same_wish(wanted, looked_at):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._again.wait(), OVERTAKEN_INTERVAL)
            self._again.clear()
            wanted = await self._app.store.read(lambda uow: uow.builders.get(self._id))

    async def _called_away(self, looked_at: Builder, until: datetime | None) -> None:
        """Returns when there is something to do for what serves, or another version is to be deployed."""
        while True:
            left = (until - self._app.clock.now()).total_seconds() if until else OVERTAKEN_INTERVAL
            with suppress(TimeoutError):
                await asyncio.wait_for(self._again.wait(), min(max(left, 0.0), OVERTAKEN_INTERVAL))
            known = await self._read()
            if known is None or not records.same_candidate(known.subject.builder, looked_at):
                return
            step = next_step(known.subject.builder, await look(self._app, known))
            if not isinstance(step, Wait):
                return

    # Troubles

    async def _trouble(self, error: Exception) -> datetime | None:
        """When to try again; None to look again at once, after the run was given up.

        No run is given up for a database that is away: it says nothing of the run.
        """
        self._crew.troubles[self._id] += not isinstance(error, StoreUnavailable)
        troubles = self._crew.troubles[self._id]
        log.warning("step failed builder=%s failures=%d", self._id, troubles, exc_info=error)
        builder = await self._app.store.read(lambda uow: uow.builders.get(self._id))
        hopeless = isinstance(error, NoCapacity | BundleLost) or troubles >= MAX_TROUBLES
        number = self._waited_for(builder) if builder is not None else None
        if hopeless and builder is not None and number is not None:
            await self._give_up(builder, number, error)
            return None
        delay = min(FIRST_RETRY * 2 ** min(troubles - 1, 10), LAST_RETRY)
        return self._app.clock.now() + timedelta(seconds=delay)

    def _waited_for(self, builder: Builder) -> int | None:
        """The version that the failed step was for, if its outcome is open."""
        if self._is_beside:
            return builder.candidate if builder.handover is None else None
        is_open = builder.desired is Desired.RUNNING and not builder.settled
        return builder.to_run[0] if is_open else None

    async def _give_up(self, looked_at: Builder, number: int, error: Exception) -> None:
        """The run has failed for a reason of the machine, not of the app."""
        told = machine_fault(error) or error
        code = told.code if isinstance(told, NoCapacity | MachineFault) else EngineUnavailable.code
        reason = told.message if isinstance(told, BuilderdError) else "The service failed at it; its log says why."
        now, prices = self._app.clock.now(), self._app.prices

        def record(uow: UnitOfWork, builder: Builder) -> None:
            version = uow.versions.get(builder.id, number)
            assert version is not None, "a builder's versions are always stored"
            if records.still_wanted(builder, looked_at, version):
                records.failed(uow, builder, version, prices, code=code, reason=reason, now=now)

        await records.apply(self._app, self._id, record)
        self._app.signals.change(self._id)
        self._crew.troubles.pop(self._id, None)
