"""The worker: claims one builder and takes step after step until there is nothing to do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import cast

from builderd.application import Application
from builderd.builders.model import Builder, Desired
from builderd.core.errors import (
    BuilderdError,
    BundleLost,
    EngineUnavailable,
    MachineFault,
    NoCapacity,
    RecordDamaged,
    StoreUnavailable,
    machine_fault,
)
from builderd.core.ids import BuilderId
from builderd.core.loops import FaultPoint, race
from builderd.core.members import MemberAway
from builderd.database.unit_of_work import UnitOfWork
from builderd.reconciler import record as transitions
from builderd.reconciler.builds import Builds
from builderd.reconciler.next_step import (
    Action,
    AwaitProcess,
    BuildApp,
    GiveUp,
    Install,
    Observation,
    PlanSandbox,
    RecordProcessEnd,
    Review,
    SetRoute,
    Settle,
    StartProcess,
    Step,
    StopProcesses,
    StopSandbox,
    Wait,
    candidate_step,
    name_of,
    next_step,
)
from builderd.reconciler.observe import StoredState, WorkItem, observe, read
from builderd.reconciler.record import ClaimLost, Result, Transition
from builderd.reconciler.steps import (
    await_listening,
    build,
    disk,
    forget,
    gate,
    install,
    processes,
    release,
    rest,
    review,
    route,
    settle,
    start,
    stop,
    trial,
)
from builderd.sandboxes.model import Sandbox

#: How long a claim keeps other workers away, and seconds between its renewals: two may fail before it expires.
LEASE, RENEW_INTERVAL = timedelta(seconds=30), 10.0
#: How often a long step looks whether something else is wanted meanwhile, in seconds; a requested pass does so at once.
OVERTAKEN_INTERVAL = 1.0
#: After a step failed for a reason of the machine: so many seconds, doubled each time, at most the last.
FIRST_RETRY, LAST_RETRY = 0.5, 60.0
#: A run that has no outcome yet is given up after so many such failures.
MAX_FAILURES = 4
#: A step that is chosen so many times in a row does not change anything.
MAX_REPEATS = 20
#: Actions that may take long.
LONG_ACTIONS = (Action.AWAIT_LISTENING, Action.AWAIT_RELEASE, Action.CHECK_APP, Action.TRY_CANDIDATE)
#: Steps that are carried out at the same time, but for those that mostly wait.
MAX_CONCURRENT_STEPS = 32

log = logging.getLogger(__name__)


class Steps:
    """Carries out the domain's steps, each by its file in ``steps``, with what they keep in this process."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._builds = Builds(application)
        #: Removals of ended sandboxes, and watches of judged apps, that go on in the background.
        self._removals: set[asyncio.Task[None]] = set()
        self._watches: set[asyncio.Task[None]] = set()

    async def perform(  # noqa: C901, PLR0912 -- one branch a step
        self, item: WorkItem, observation: Observation, step: Step
    ) -> Result:
        """Do one step. Raises what the ports raise."""
        app, report = self._app, observation.report
        # A step on the sandbox, or on the trial, is chosen only where there is one.
        sandbox, tried = cast("Sandbox", observation.sandbox), cast("Sandbox", observation.trial)
        match step:
            case Review(number):
                return await review.review(app, item.for_version(number))
            case Install(number):
                return await install.install(app, self._builds, item.for_version(number))
            case BuildApp(number):
                return await build.build(app, self._builds, item.for_version(number))
            case Action.CREATE_DISK:
                return await disk.create_disk(app, item)
            case Action.MOVE_DISK:
                return await disk.move_disk(app, item)
            case Action.RECORD_LOSS:
                return await disk.record_loss(app, item)
            case Action.RECOVER_DISK:
                return disk.recover_disk(app, item)
            case Action.PUT_BUNDLE:
                return await disk.put_bundle(app, item)
            case Action.DROP_DISKS:
                return await disk.drop_disks(app, item)
            case PlanSandbox():
                return start.plan_sandbox(item, step)
            case Action.START_SANDBOX:
                return await start.start_sandbox(app, item, sandbox)
            case Action.AWAIT_LISTENING:
                return await await_listening.await_listening(app, item, sandbox)
            case Action.AWAIT_RELEASE:
                return await release.await_release(app, sandbox)
            case Action.CHECK_APP:
                return await gate.check_app(app, self._watches, item, sandbox)
            case Action.FREEZE:
                return await rest.freeze(app, item, sandbox, report)
            case Action.THAW:
                return await rest.thaw(app, sandbox, report)
            case StopSandbox():
                return await stop.stop(app, self._removals, item, sandbox, report, drain=step.drain)
            case Action.RECORD_END if sandbox.release:
                return await release.record_release_end(app, item, sandbox, report)
            case Action.RECORD_END:
                return stop.record_end(app, item, sandbox, report)
            case SetRoute(to):
                return await route.set_route(app, to)
            case Action.REMOVE_ROUTE:
                return await route.remove_route(app, item)
            case Action.PLAN_TRIAL:
                return trial.plan_trial(item)
            case Action.TRY_CANDIDATE:
                return await trial.try_candidate(app, item, tried)
            case Action.END_TRIAL:
                return await trial.end_trial(app, tried)
            case Action.HAND_OVER:
                return trial.hand_over(item)
            case Settle(status):
                return await settle.settle(app, item, observation, status)
            case GiveUp():
                return await settle.give_up(app, item, observation, step)
            case StartProcess(one):
                return await start.start_sandbox(app, item, one)
            case AwaitProcess(one):
                return await processes.await_process(app, one)
            case StopProcesses(some):
                return await processes.stop_processes(app, some)
            case RecordProcessEnd(one):
                return await processes.record_process_end(app, item, one)
            case Action.FORGET:
                return await forget.forget(app, item)
            case Wait():
                return Result()

    async def close(self) -> None:
        """Wait for removals that go on in the background."""
        await asyncio.gather(*self._removals, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """Shared state of one reconciler's workers. ``failures`` counts failed steps by builder.

    They count since the builder was last settled, or its desired state changed.
    """

    steps: Steps
    fault: FaultPoint
    #: Called when a builder is settled: nothing to do for it now.
    settled: Callable[[], None]
    step_limit: asyncio.Semaphore
    failures: dict[BuilderId, tuple[Desired, int]] = field(default_factory=dict)


class Worker:
    """Works on one builder while there is something to do."""

    def __init__(self, application: Application, builder_id: BuilderId, context: WorkerContext) -> None:
        self._app = application
        self._id = builder_id
        self._context = context
        #: Set to make the worker observe the builder again before it ends.
        self.again = asyncio.Event()
        self._last: Step | None = None
        self._repeats = 0
        #: The present step is for the candidate, while the builder itself waits.
        self._is_for_candidate = False
        #: As it was read last.
        self._desired: Desired | None = None

    async def run(self) -> None:
        """Claim the builder, take its steps, release the claim."""
        store, owner, now = self._app.store, self._app.instance, self._app.clock.now()
        # Work that is cut off is due at once for the next worker.
        due: datetime | None = now
        try:
            self.again.clear()
            is_claimed, stored = await store.write(lambda uow: self._claim(uow, now), durable=False)
            if is_claimed:
                due = await race(self._work(stored), self._renew_until_lost())
        except ClaimLost:
            log.info("claim lost builder=%s", self._id)
        finally:
            await store.write(lambda uow: uow.builders.release(self._id, owner, due), durable=False)

    def _claim(self, uow: UnitOfWork, now: datetime) -> tuple[bool, StoredState | None]:
        """Return whether the claim was free, and the builder as it is then; None for a damaged one."""
        if not uow.builders.claim(self._id, self._app.instance, now, now + LEASE):
            return False, None
        with suppress(RecordDamaged):
            return True, read(uow, self._id)
        return True, None

    async def _renew_until_lost(self) -> None:
        """Renew the claim every ``RENEW_INTERVAL`` seconds; return when another control plane has it."""

        def renew(uow: UnitOfWork) -> bool:
            now = self._app.clock.now()
            return uow.builders.renew(self._id, self._app.instance, now, now + LEASE)

        while True:
            await asyncio.sleep(RENEW_INTERVAL)
            try:
                if not await self._app.store.write(renew):
                    return
            except Exception:
                log.warning("claim renewal failed, retrying in 10 s builder=%s", self._id, exc_info=True)

    async def _work(self, stored: StoredState | None) -> datetime | None:
        """Take steps until there are none; return when the next is due."""
        while True:
            try:
                if stored is None or self.again.is_set():
                    stored = await self._read()
                if stored is None:
                    return None
                self._desired = stored.item.builder.desired
                observation = await observe(self._app, stored)
                step = next_step(stored.item.builder, observation)
                until: datetime | None = None
                self._is_for_candidate = isinstance(step, Wait)
                if isinstance(step, Wait):
                    until = step.until
                    side_step = candidate_step(stored.item.builder, observation)
                    if side_step is None:
                        self._context.failures.pop(self._id, None)
                        self._app.stalled.clear(self._id)
                        self._context.settled()
                        return until
                    step = side_step
                self._repeats = self._repeats + 1 if step == self._last else 0
                self._last = step
                if self._repeats >= MAX_REPEATS:
                    self._repeats = 0
                    raise RuntimeError(f"nothing comes of {name_of(step)}")  # noqa: TRY301 -- counts as a failure
                stored = await self._take(stored, observation, step, until)
            except ClaimLost:
                raise
            except Exception as error:
                stored = None
                due = await self._handle_failure(error)
                if due is not None:
                    return due

    async def _read(self) -> StoredState | None:
        """Read the builder; None for a damaged one. Damaged rows of a deleted one are cleared first."""
        self.again.clear()
        try:
            return await self._app.store.read(lambda uow: read(uow, self._id))
        except RecordDamaged:

            def read_deleted(uow: UnitOfWork) -> StoredState | None:
                if uow.builders.owner_of_live(self._id) is not None:
                    return None
                uow.builders.replace_undecodable(self._id, self._app.clock.now())
                return read(uow, self._id)

            return await self._app.store.write(read_deleted)

    async def _take(
        self, stored: StoredState, observation: Observation, step: Step, until: datetime | None
    ) -> StoredState | None:
        """Do and record one step. Return the state stored afterwards, None when it must be read again.

        A long step gives way to a newer desired state, and one for the candidate also at ``until``.
        """
        name, item = name_of(step), stored.item
        is_long = step in LONG_ACTIONS or isinstance(step, Review | Install | BuildApp | AwaitProcess)
        self._context.fault(f"{name}.begun")
        async with (
            nullcontext() if is_long or isinstance(step, StopSandbox | StopProcesses) else self._context.step_limit
        ):
            work = self._context.steps.perform(item, observation, step)
            if not is_long:
                result: Result | None = await work
            elif self._is_for_candidate:
                result = await race(work, self._called_away(item.builder, until))
            else:
                result = await race(work, self._overtaken(item.builder))
        if result is None:
            return None
        self._context.fault(f"{name}.done")
        after: StoredState | None = stored
        if result.record is not None:
            after = await transitions.apply(self._app, self._id, result.record, durable=result.durable)
            if not result.quiet:
                # Those who wait for its outcome are woken once it has one.
                settled = after is None or after.item.builder.settled
                (self._app.signals.change if settled else self._app.signals.progress)(self._id)
                # Those who wait go on before the next look at the builder.
                await asyncio.sleep(0)
        self._context.fault(f"{name}.recorded")
        await result.afterwards()
        return after

    async def _overtaken(self, looked_at: Builder) -> None:
        """Return when the desired state differs from ``looked_at``."""
        wanted: Builder | None = looked_at
        while wanted is not None and transitions.same_generation(wanted, looked_at):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.again.wait(), OVERTAKEN_INTERVAL)
            self.again.clear()
            wanted = await self._app.store.read(lambda uow: uow.builders.get(self._id))

    async def _called_away(self, looked_at: Builder, until: datetime | None) -> None:
        """Return when the serving version needs a step, or another candidate is to be deployed."""
        while True:
            left = (until - self._app.clock.now()).total_seconds() if until else OVERTAKEN_INTERVAL
            with suppress(TimeoutError):
                await asyncio.wait_for(self.again.wait(), min(max(left, 0.0), OVERTAKEN_INTERVAL))
            stored = await self._read()
            if stored is None or not transitions.same_candidate(stored.item.builder, looked_at):
                return
            step = next_step(stored.item.builder, await observe(self._app, stored))
            if not isinstance(step, Wait):
                return

    # Failures

    async def _handle_failure(self, error: Exception) -> datetime | None:
        """Return when to retry; None to observe again at once, after the run was given up.

        A stop or a deletion is tried until it succeeds; calls that wait for it end with its failure.
        An unreachable database gives no run up: its failures are not counted.
        """
        failures = self._count(error)
        shown = None if isinstance(error, MemberAway) else error
        log.warning("step failed builder=%s failures=%d error=%s", self._id, failures, error, exc_info=shown)
        builder = await self._app.store.read(lambda uow: uow.builders.get(self._id))
        hopeless = isinstance(error, NoCapacity | BundleLost) or failures >= MAX_FAILURES
        number = self._waited_for(builder) if builder is not None else None
        if hopeless and builder is not None and number is not None:
            await self._give_up(builder, number, error)
            return None
        if failures >= MAX_FAILURES and builder is not None and builder.desired is not Desired.RUNNING:
            self._app.stalled.note(self._id, error)
            self._app.signals.change(self._id)
        delay = min(FIRST_RETRY * 2 ** min(failures - 1, 10), LAST_RETRY)
        return self._app.clock.now() + timedelta(seconds=delay)

    def _count(self, error: Exception) -> int:
        """Return the number of failed steps towards the present desired state."""
        towards, before = self._context.failures.get(self._id, (None, 0))
        desired = self._desired or towards or Desired.RUNNING
        failures = (before if towards is desired else 0) + (not isinstance(error, StoreUnavailable))
        self._context.failures[self._id] = desired, failures
        return failures

    def _waited_for(self, builder: Builder) -> int | None:
        """Return the version that the failed step was for, if its outcome is open."""
        if self._is_for_candidate:
            return builder.candidate_version if builder.handover is None else None
        is_open = builder.desired is Desired.RUNNING and not builder.settled
        return builder.to_run[0] if is_open else None

    async def _give_up(self, looked_at: Builder, number: int, error: Exception) -> None:
        """Record that the run failed because of the machine, not of the app."""
        shown = machine_fault(error) or error
        code = shown.code if isinstance(shown, NoCapacity | MachineFault | BundleLost) else EngineUnavailable.code
        reason = shown.message if isinstance(shown, BuilderdError) else "The service failed at it; its log says why."

        def record(transition: Transition) -> None:
            version = transition.uow.versions.require(self._id, number)
            if transitions.still_wanted(transition.builder, looked_at, version):
                transitions.failed(transition, version, code=code, reason=reason)

        await transitions.apply(self._app, self._id, record)
        self._app.signals.change(self._id)
        self._context.failures.pop(self._id, None)
