"""Steps: each first acts on engine and preview, idempotently and outside a transaction, then returns its record."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import datetime

from builderd.domain import steps as domain
from builderd.domain.builders import SANDBOX_COMMAND, Builder, Handover, JobType, Status
from builderd.domain.errors import BuildFailed, InstallFailed, MachineFault, NotFound, ReleaseFailed, StartFailed
from builderd.domain.failures import exited_early, exited_too_often, lacks_memory, not_listening, starved
from builderd.domain.ids import BuilderId, DiskId, new_id
from builderd.domain.next_step import next_step
from builderd.domain.previews import Route
from builderd.domain.restarts import recent_crashes
from builderd.domain.sandboxes import Sandbox
from builderd.domain.steps import Observation
from builderd.reconciler.core import sandbox_transitions, transitions, version_transitions
from builderd.reconciler.core.observe import WorkItem
from builderd.reconciler.core.result import Result
from builderd.reconciler.core.transitions import Transition
from builderd.reconciler.stages import handover
from builderd.reconciler.stages.first_start import FirstStart
from builderd.reconciler.stages.forgetting import Forgetting
from builderd.reconciler.stages.gate import Gate
from builderd.reconciler.stages.install import LayerInstalls
from builderd.reconciler.stages.listening import wait_until_up
from builderd.reconciler.stages.releases import Releases
from builderd.reconciler.stages.settling import Settling, note_up
from builderd.reconciler.stages.starting import last_lines, make_spec, new_sandbox, put_bundle
from builderd.reconciler.stages.stopping import Stopping
from builderd.reconciler.stages.trials import Trials
from builderd.services import restores, verdicts
from builderd.services.application import Application
from builderd.services.bundles import SharedFetch
from builderd.services.hints import hint_of
from builderd.store import UnitOfWork

log = logging.getLogger(__name__)


class Steps:
    """Carries out the domain's steps with the application's ports."""

    def __init__(self, application: Application, limit: asyncio.Semaphore) -> None:
        """``limit`` is that of steps at the same time, for the work beside those that do not count."""
        self._app = application
        self._installs = LayerInstalls(application)
        self._trials = Trials(application)
        self._gate = Gate(application)
        self._stopping = Stopping(application)
        self._releases = Releases(application)
        self._settling = Settling(application)
        self._first_start = FirstStart(application, limit)
        self._forgetting = Forgetting(application)
        #: Routes that are being set beside a record, so that the tasks are not lost.
        self._putting: set[asyncio.Task[None]] = set()

    async def perform(  # noqa: C901, PLR0912 -- one branch a step
        self, item: WorkItem, observation: Observation, step: domain.Step
    ) -> Result:
        """Do one step. Raises what the ports raise."""
        match step:
            case domain.Review(number):
                return await self._review(item.for_version(number), observation)
            case domain.Install(number):
                return await self._install(item.for_version(number), observation)
            case domain.BuildApp(number):
                return await self._build(item.for_version(number))
            case domain.CreateDisk():
                return await self._create_disk(item)
            case domain.MoveDisk():
                return await self._move_disk(item)
            case domain.RecordLoss():
                return await self._record_loss(item)
            case domain.RecoverDisk():
                return self._recover_disk(item)
            case domain.PutBundle():
                return await self._put_bundle(item)
            case domain.PlanSandbox():
                return self._plan_sandbox(item, step)
            case domain.StartSandbox():
                return await self._start_sandbox(item, _open(observation))
            case domain.AwaitListening():
                return await self._await_listening(item, observation)
            case domain.AwaitRelease():
                return await self._releases.wait(_open(observation))
            case domain.CheckApp():
                return await self._gate.check(item, _open(observation))
            case domain.StopSandbox():
                return await self._stopping.stop(item, _open(observation), observation.report, drain=step.drain)
            case domain.Freeze():
                return await self._stopping.freeze(item, _open(observation), observation.report)
            case domain.Thaw(route):
                return await self._stopping.thaw(_open(observation), route, observation.report)
            case domain.RecordEnd():
                if _open(observation).release:
                    return await self._releases.record_end(item, _open(observation), observation.report)
                return self._stopping.record_end(item, _open(observation), observation.report)
            case domain.SetRoute(route):
                return await self._set_route(item, observation, route)
            case domain.RemoveRoute():
                await self._app.previews.remove(item.builder.host)
                return Result()
            case domain.Forget():
                return await self._forgetting.forget(item)
            case domain.Settle(status):
                return await self._settling.settle(item, observation, status)
            case domain.GiveUp(too_often):
                return await self._give_up(item, observation, too_often)
            case domain.PlanTrial():
                return self._plan_trial(item)
            case domain.TryCandidate():
                return await self._trials.run(item, _trial(observation))
            case domain.EndTrial():
                return await self._trials.end(_trial(observation))
            case domain.HandOver():
                return self._hand_over(item)
            case domain.DropDisks():
                return await self._drop_disks(item)
            case domain.Wait():
                return Result()

    async def leave(self, builder_id: BuilderId) -> None:
        """End the background work of a builder that no worker handles any more."""
        await self._installs.leave(builder_id)

    async def close(self) -> None:
        """Wait for what goes on beside records: it takes milliseconds, and is not left to the end of the loop."""
        await asyncio.gather(*self._putting, self._stopping.close(), return_exceptions=True)

    async def _review(self, item: WorkItem, observation: Observation) -> Result:
        begun = self._now()
        bundle = SharedFetch(self._app, item.version)
        if item.version.layer_key is None:
            await self._installs.begin(item, bundle)
        tenant_id = item.builder.tenant_id
        async with self._first_start.disk_beside(item, observation, bundle):
            report, reused = await verdicts.report_of(self._app, tenant_id, item.version)
            now = self._now()
            installed = await self._installs.nothing_to_install(item)
        seconds = (now - begun).total_seconds()
        passes, start = await verdicts.passes(self._app, item.builder.id, report, now), None
        if not passes:
            await self._first_start.drop_disk(item, observation)
        elif installed is not None:
            start = await self._first_start.plan(item, observation)

        def record(uow: UnitOfWork, builder: Builder) -> None:
            transition = Transition(uow, builder, self._app.prices, now)
            passed = transitions.still_wanted(builder, item.builder, item.version) and version_transitions.reviewed(
                transition, item.version, report, seconds=seconds, reused=reused
            )
            if passed and installed is not None:
                transitions.installed(transition, item.version, installed)
            if start is not None:
                start.record(uow, builder, now, holds=passed)

        return Result(record)

    async def _install(self, item: WorkItem, observation: Observation) -> Result:
        try:
            async with self._first_start.disk_beside(item, observation):
                installed = await self._installs.install(item)
        except InstallFailed as failure:
            return self._failed(item, "install", failure.code, failure.message)

        now, start = self._now(), await self._first_start.plan(item, observation)

        def record(uow: UnitOfWork, builder: Builder) -> None:
            transitions.installed(Transition(uow, builder, self._app.prices, now), item.version, installed)
            if start is not None:
                start.record(uow, builder, now, holds=transitions.same_generation(builder, item.builder))

        return Result(record)

    async def _build(self, item: WorkItem) -> Result:
        try:
            built = await self._installs.build(item)
        except BuildFailed as failure:
            return self._failed(item, "build", failure.code, failure.message)
        now = self._now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            version = transitions.as_stored(uow, item.version)
            uow.versions.save(replace(version, build_key=built.build_key))
            transitions.built(Transition(uow, builder, self._app.prices, now), item.version, built)

        return Result(record)

    async def _create_disk(self, item: WorkItem) -> Result:
        await self._make_disk(item)
        now, prices = self._now(), self._app.prices
        return Result(lambda uow, builder: sandbox_transitions.disk_made(uow, builder, item, prices, now), quiet=True)

    async def _move_disk(self, item: WorkItem) -> Result:
        member = await self._app.engine.move_disk(item.disk)
        now = self._now()
        return Result(lambda uow, builder: sandbox_transitions.disk_moved(uow, builder, member, now), quiet=True)

    async def _record_loss(self, item: WorkItem) -> Result:
        """The disk of a candidate is a copy: its release runs again on the next one, and nothing else is lost."""
        is_own = await self._app.engine.disk(item.builder.disk) is None
        now, prices = self._now(), self._app.prices

        def record(uow: UnitOfWork, builder: Builder) -> None:
            sandbox_transitions.disk_lost(Transition(uow, builder, prices, now), item, is_own=is_own)

        return Result(record, quiet=True)

    def _recover_disk(self, item: WorkItem) -> Result:
        """The backups' schedule does it, and says so: this only has it done."""
        now = self._now()
        return Result(lambda uow, builder: restores.recover(uow, self._app, builder, item.builder.disk, now))

    async def _make_disk(self, item: WorkItem) -> None:
        """A candidate takes over the data on a copy, so that it can be given up without a trace."""
        engine, builder, size = self._app.engine, item.builder, item.version.settings.resources.disk_bytes
        copies = item.disk != builder.disk and await engine.disk(item.disk) is None
        if copies and await engine.disk(builder.disk) is not None:
            await engine.clone_disk(builder.disk, item.disk, size)
        else:
            await engine.create_disk(item.disk, size)

    async def _put_bundle(self, item: WorkItem) -> Result:
        await put_bundle(self._app, item, item.disk)
        return Result()

    async def _set_route(self, item: WorkItem, observation: Observation, route: Route) -> Result:
        """Set the route. A start that comes next is planned meanwhile: what it records needs no route."""
        following = next_step(item.builder, replace(observation, route=route))
        if not isinstance(following, domain.PlanSandbox):
            await self._app.previews.put(route)
            return Result()
        putting = asyncio.create_task(self._app.previews.put(route))
        self._putting.add(putting)
        putting.add_done_callback(self._putting.discard)

        planned = self._plan_sandbox(item, following)

        async def until_put() -> None:
            await planned.afterwards()
            await putting

        return replace(planned, afterwards=until_put)

    def _plan_sandbox(self, item: WorkItem, step: domain.PlanSandbox) -> Result:
        now = self._now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if not transitions.same_generation(builder, item.builder):
                return
            uow.sandboxes.add(replace(new_sandbox(uow, item, item.disk, now), release=step.release))
            if step.release or step.attempt == 1:
                transitions.stage_started(uow, builder, "release" if step.release else "start", now)

        return Result(record)

    def _plan_trial(self, item: WorkItem) -> Result:
        now, disk = self._now(), DiskId(new_id())

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if transitions.same_candidate(builder, item.builder):
                uow.sandboxes.add(replace(new_sandbox(uow, item.for_candidate, disk, now), trial=True))

        return Result(record, quiet=True)

    def _hand_over(self, item: WorkItem) -> Result:
        now = self._now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if transitions.same_candidate(builder, item.builder):
                version_transitions.handed_over(uow, builder, item.for_candidate.version, now)

        return Result(record)

    async def _drop_disks(self, item: WorkItem) -> Result:
        dropped = item.builder.spare_disks
        for disk in dropped:
            await self._app.engine.delete_disk(disk)

        def record(uow: UnitOfWork, builder: Builder) -> None:
            left = tuple(disk for disk in builder.spare_disks if disk not in dropped)
            uow.builders.save(replace(builder, spare_disks=left))

        return Result(record, quiet=True)

    async def _start_sandbox(self, item: WorkItem, sandbox: Sandbox) -> Result:
        try:
            spec = await make_spec(self._app, item, sandbox)
        except NotFound as lack:
            stage, code = ("release", ReleaseFailed.code) if sandbox.release else ("start", StartFailed.code)
            return self._failed(item, stage, code, lack.message, since=sandbox.created_at)
        report = await self._app.engine.start(spec)
        version, now = item.version, self._now()
        is_up = item.builder.job_type is JobType.SANDBOX and version.settings.entrypoint == SANDBOX_COMMAND

        def record(uow: UnitOfWork, builder: Builder) -> None:
            transition = Transition(uow, item.builder, self._app.prices, now)
            started = sandbox_transitions.sandbox_started(transition, version, sandbox, report)
            if report.member != builder.location:
                builder = replace(builder, location=report.member)
                uow.builders.save(builder)
            if is_up and not sandbox.release:  # it has no program of its own that could fail
                note_up(replace(transition, builder=builder), item, replace(started, listening_at=now))

        return Result(record, quiet=True)

    async def _await_listening(self, item: WorkItem, observation: Observation) -> Result:
        sandbox, port = _open(observation), item.version.settings.port
        wait = await wait_until_up(self._app, item, sandbox, await self._time_limit(item))
        if wait.reachable:
            return await self._settling.listens(item, observation, replace(sandbox, listening_at=self._now()))
        if wait.ended is not None:
            return Result()  # the next look records the end and judges it
        lines = await last_lines(self._app, sandbox)
        if wait.starved is not None:
            reason = starved(wait.seconds, wait.starved, lines)
            return self._failed(item, "start", MachineFault.code, reason, since=sandbox.created_at)
        reason = not_listening(wait.listening, port, wait.seconds, lines)
        if wait.lacks_memory:
            reason = lacks_memory(item.version.settings.resources, reason)
        return self._failed(item, "start", StartFailed.code, reason, since=sandbox.created_at)

    async def _time_limit(self, item: WorkItem) -> float:
        """Return how long the app may take to listen, in seconds."""
        limits = self._app.limits
        longest = limits.start_seconds(item.version.settings)
        if item.builder.handover is not Handover.FORWARD or item.builder.status is not Status.RUNNING:
            return longest
        trial, old = await self._app.store.read(lambda uow: handover.last_starts(uow, item))
        return handover.time_limit(trial, old, limits.handover_timeout, longest)

    async def _give_up(self, item: WorkItem, observation: Observation, too_often: bool) -> Result:
        last = observation.ends[-1]
        assert last.end is not None
        settings = item.version.settings
        lines = await last_lines(self._app, last)
        hint = await hint_of(self._app, item.version, lines)
        if too_often:
            exits = recent_crashes(observation.ends, observation.now)
            reason = exited_too_often(last.end, settings.resources, len(exits), lines, hint)
        else:
            port = settings.port if item.builder.job_type.must_listen else None
            reason = exited_early(last.end, settings.resources, port, lines, hint)
        return self._failed(
            item, "start", StartFailed.code, reason, since=last.created_at, exit_code=last.end.exit_code
        )

    def _failed(
        self,
        item: WorkItem,
        stage: str,
        code: str,
        reason: str,
        *,
        since: datetime | None = None,
        exit_code: int | None = None,
    ) -> Result:
        now = self._now()
        seconds = (now - since).total_seconds() if since else 0.0

        def record(uow: UnitOfWork, builder: Builder) -> None:
            transition = Transition(uow, builder, self._app.prices, now)
            if not transitions.still_wanted(builder, item.builder, item.version):
                return
            transitions.stage_finished(transition, stage, seconds=seconds, ok=False, note=reason)
            version_transitions.failed(transition, item.version, code=code, reason=reason, exit_code=exit_code)
            if stage == "start" and code == StartFailed.code and builder.job_type.stays_up:
                version_transitions.never_up(uow, builder, item.version, reason, now)

        return Result(record)

    def _now(self) -> datetime:
        return self._app.clock.now()


def _open(observation: Observation) -> Sandbox:
    assert observation.sandbox is not None, "the step was chosen because there is one"
    return observation.sandbox


def _trial(observation: Observation) -> Sandbox:
    assert observation.trial is not None, "the step was chosen because there is one"
    return observation.trial
