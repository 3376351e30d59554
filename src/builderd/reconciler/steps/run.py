"""Steps: each first acts on engine and preview, idempotently and outside a transaction, then returns its record."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import cast

from builderd.application import Application
from builderd.backups import restores
from builderd.backups import service as backups
from builderd.builders import candidates
from builderd.builders.model import Handover, Status, StopKind, recent_crashes
from builderd.core.errors import BuildFailed, InstallFailed, NotFound, ReleaseFailed, StartFailed
from builderd.core.ids import DiskId, new_id
from builderd.events.model import SYSTEM
from builderd.executions.service import hint_of
from builderd.qa.service import last_lines
from builderd.reconciler import next_step as domain
from builderd.reconciler import record as transitions
from builderd.reconciler.failures import exited_early, exited_too_often, not_listening
from builderd.reconciler.next_step import Action, Observation
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.reconciler.steps import start as starting
from builderd.reconciler.steps.gate import Gate
from builderd.reconciler.steps.install import LayerInstalls
from builderd.reconciler.steps.start import make_spec, new_sandbox, put_bundle, wait_until_up
from builderd.reconciler.steps.stop import Forgetting, Stopping
from builderd.reconciler.steps.trial import Releases, Trials
from builderd.review import verdicts
from builderd.sandboxes.model import Sandbox


class Steps:
    """Carries out the domain's steps with the application's ports."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._installs = LayerInstalls(application)
        self._trials = Trials(application)
        self._gate = Gate(application)
        self._stopping = Stopping(application)
        self._releases = Releases(application)
        self._forgetting = Forgetting(application)

    async def perform(  # noqa: C901, PLR0912 -- one branch a step
        self, item: WorkItem, observation: Observation, step: domain.Step
    ) -> Result:
        """Do one step. Raises what the ports raise."""
        # A step on the sandbox, or on the trial, is chosen only where there is one.
        sandbox, trial = cast("Sandbox", observation.sandbox), cast("Sandbox", observation.trial)
        match step:
            case domain.Review(number):
                return await self._review(item.for_version(number))
            case domain.Install(number):
                return await self._install(item.for_version(number))
            case domain.BuildApp(number):
                return await self._build(item.for_version(number))
            case Action.CREATE_DISK:
                return await self._create_disk(item)
            case Action.MOVE_DISK:
                return await self._move_disk(item)
            case Action.RECORD_LOSS:
                return await self._record_loss(item)
            case Action.RECOVER_DISK:
                return self._recover_disk(item)
            case Action.PUT_BUNDLE:
                await put_bundle(self._app, item, item.disk)
                return Result()
            case domain.PlanSandbox():
                return self._plan_sandbox(item, step)
            case Action.START_SANDBOX:
                return await self._start_sandbox(item, sandbox)
            case Action.AWAIT_LISTENING:
                return await self._await_listening(item, sandbox)
            case Action.AWAIT_RELEASE:
                return await self._releases.wait(sandbox)
            case Action.CHECK_APP:
                return await self._gate.check(item, sandbox)
            case domain.StopSandbox():
                return await self._stopping.stop(item, sandbox, observation.report, drain=step.drain)
            case Action.FREEZE:
                return await self._stopping.freeze(item, sandbox, observation.report)
            case Action.THAW:
                return await self._stopping.thaw(sandbox, observation.report)
            case Action.RECORD_END:
                if sandbox.release:
                    return await self._releases.record_end(item, sandbox, observation.report)
                return self._stopping.record_end(item, sandbox, observation.report)
            case domain.SetRoute(route):
                await self._app.previews.put(route)
                return Result()
            case Action.REMOVE_ROUTE:
                await self._app.previews.remove(item.builder.host)
                return Result()
            case Action.FORGET:
                return await self._forgetting.forget(item)
            case domain.Settle(status):
                return await self._settle(item, observation, status)
            case domain.GiveUp(too_often):
                return await self._give_up(item, observation, too_often)
            case Action.PLAN_TRIAL:
                return self._plan_trial(item)
            case Action.TRY_CANDIDATE:
                return await self._trials.run(item, trial)
            case Action.END_TRIAL:
                return await self._trials.end(trial)
            case Action.HAND_OVER:
                return self._hand_over(item)
            case Action.DROP_DISKS:
                return await self._drop_disks(item)
            case domain.Wait():
                return Result()

    async def close(self) -> None:
        """Wait for removals that go on in the background."""
        await self._stopping.close()

    async def _review(self, item: WorkItem) -> Result:
        begun = self._app.clock.now()
        report, reused = await verdicts.report_of(self._app, item.builder.tenant_id, item.version)
        seconds = (self._app.clock.now() - begun).total_seconds()

        def record(transition: Transition) -> None:
            if transitions.still_wanted(transition.builder, item.builder, item.version):
                transitions.reviewed(transition, item.version, report, seconds=seconds, reused=reused)

        return Result(record)

    async def _install(self, item: WorkItem) -> Result:
        try:
            installed = await self._installs.install(item)
        except InstallFailed as failure:
            return self._failed(item, "install", failure.code, failure.message)
        return Result(lambda transition: transitions.installed(transition, item.version, installed))

    async def _build(self, item: WorkItem) -> Result:
        try:
            built = await self._installs.build(item)
        except BuildFailed as failure:
            return self._failed(item, "build", failure.code, failure.message)
        return Result(lambda transition: transitions.built(transition, item.version, built))

    async def _create_disk(self, item: WorkItem) -> Result:
        """A candidate takes over the data on a copy, so that it can be given up without a trace."""
        engine, builder, size = self._app.engine, item.builder, item.version.settings.resources.disk_bytes
        copies = item.disk != builder.disk and await engine.disks.disk(item.disk) is None
        if copies and await engine.disks.disk(builder.disk) is not None:
            await engine.disks.clone_disk(builder.disk, item.disk, size)
        else:
            await engine.disks.create_disk(item.disk, size)
        return Result(lambda transition: transitions.disk_made(transition, item), quiet=True)

    async def _move_disk(self, item: WorkItem) -> Result:
        member = await self._app.engine.move_disk(item.disk)
        return Result(lambda transition: transitions.disk_moved(transition, member), quiet=True)

    async def _record_loss(self, item: WorkItem) -> Result:
        """The disk of a candidate is a copy: its release runs again on the next one, and nothing else is lost."""
        is_own = await self._app.engine.disks.disk(item.builder.disk) is None
        return Result(lambda transition: transitions.disk_lost(transition, item, is_own=is_own), quiet=True)

    def _recover_disk(self, item: WorkItem) -> Result:
        disk = item.builder.disk  # the backups' schedule restores it; this only asks for that
        return Result(lambda record: restores.recover(record.uow, self._app, record.builder, disk, record.now))

    def _plan_sandbox(self, item: WorkItem, step: domain.PlanSandbox) -> Result:
        def record(transition: Transition) -> None:
            if not transitions.same_generation(transition.builder, item.builder):
                return
            sandbox = new_sandbox(transition.uow, item, item.disk, transition.now)
            transition.uow.sandboxes.add(replace(sandbox, release=step.release))
            if step.release or step.attempt == 1:
                stage = "release" if step.release else "start"
                uow, builder = transition.uow, transition.builder
                candidates.record(uow, builder, "stage.started", SYSTEM, stage, transition.now, stage=stage)

        return Result(record)

    def _plan_trial(self, item: WorkItem) -> Result:
        disk = DiskId(new_id())

        def record(transition: Transition) -> None:
            if transitions.same_candidate(transition.builder, item.builder):
                trial = new_sandbox(transition.uow, item.for_candidate, disk, transition.now)
                transition.uow.sandboxes.add(replace(trial, trial=True))

        return Result(record, quiet=True)

    def _hand_over(self, item: WorkItem) -> Result:
        def record(transition: Transition) -> None:
            if transitions.same_candidate(transition.builder, item.builder):
                transitions.handed_over(transition, item.for_candidate.version)

        return Result(record)

    async def _drop_disks(self, item: WorkItem) -> Result:
        dropped = item.builder.spare_disks
        for disk in dropped:
            await self._app.engine.disks.delete_disk(disk)

        def record(transition: Transition) -> None:
            left = tuple(disk for disk in transition.builder.spare_disks if disk not in dropped)
            transition.uow.builders.save(replace(transition.builder, spare_disks=left))

        return Result(record, quiet=True)

    async def _start_sandbox(self, item: WorkItem, sandbox: Sandbox) -> Result:
        try:
            spec = await make_spec(self._app, item, sandbox)
        except NotFound as lack:
            stage, code = ("release", ReleaseFailed.code) if sandbox.release else ("start", StartFailed.code)
            return self._failed(item, stage, code, lack.message, since=sandbox.created_at)
        report = await self._app.engine.sandboxes.start(spec)

        def record(transition: Transition) -> None:
            transitions.sandbox_started(transition, item.version, sandbox, report)
            if report.member != transition.builder.location:
                transition.uow.builders.save(replace(transition.builder, location=report.member))

        return Result(record, quiet=True)

    async def _await_listening(self, item: WorkItem, sandbox: Sandbox) -> Result:
        port = item.version.settings.port
        wait = await wait_until_up(self._app, item, sandbox, await self._time_limit(item))
        if wait.reachable:

            def record(transition: Transition) -> None:
                transition.uow.sandboxes.save(replace(sandbox, listening_at=transition.now))
                if transitions.same_generation(transition.builder, item.builder) and not transition.builder.settled:
                    seconds = (transition.now - sandbox.created_at).total_seconds()
                    transitions.stage_finished(transition, "start", seconds=seconds, ok=True)

            return Result(record, quiet=True)
        if wait.ended is not None:
            return Result()  # the next look records the end and judges it
        lines = await last_lines(self._app, sandbox.id)
        reason = not_listening(wait.listening, port, wait.seconds, lines)
        return self._failed(item, "start", StartFailed.code, reason, since=sandbox.created_at)

    async def _settle(self, item: WorkItem, observation: Observation, status: Status) -> Result:
        """Return the record of the outcome of the present run."""
        lines = await last_lines(self._app, observation.ends[-1].id) if status is Status.FAILED else []

        def record(transition: Transition) -> None:
            builder, now = transition.builder, transition.now
            if not transitions.same_generation(builder, item.builder):
                return
            if status is Status.STOPPED:
                if builder.stop_kind is StopKind.IDLE:
                    backups.keep_idle(transition.uow, self._app, builder, now)
                transitions.mark_terminal(transition.uow, builder, status, builder.cause.reason, now)
                return
            sandbox = observation.sandbox or observation.ends[-1]
            if not builder.settled and sandbox.listening_at is None:
                seconds = (now - sandbox.created_at).total_seconds()
                transitions.stage_finished(transition, "start", seconds=seconds, ok=True)
            if status is Status.RUNNING:
                transitions.running(transition, item.version)
            else:
                transitions.job_over(transition, item, status, sandbox, lines)

        return Result(record)

    async def _time_limit(self, item: WorkItem) -> float:
        """Return how long the app may take to listen, in seconds."""
        limits = self._app.limits
        longest = limits.start_seconds(item.version.settings)
        if item.builder.handover is not Handover.FORWARD or item.builder.status is not Status.RUNNING:
            return longest
        sandboxes = await self._app.store.read(lambda uow: uow.sandboxes.list(item.builder.id))
        trials = [one for one in sandboxes if one.trial and one.version == item.version.number]
        current = item.builder.version
        runs = [one for one in sandboxes if not one.trial and one.version == current and one.listening_at]
        last_trial, last_run = (found[-1] if found else None for found in (trials, runs))
        return starting.time_limit(last_trial, last_run, limits.handover_timeout, longest)

    async def _give_up(self, item: WorkItem, observation: Observation, too_often: bool) -> Result:
        last = observation.ends[-1]
        assert last.end is not None
        settings = item.version.settings
        lines = await last_lines(self._app, last.id)
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
        seconds = (self._app.clock.now() - since).total_seconds() if since else 0.0

        def record(transition: Transition) -> None:
            if not transitions.still_wanted(transition.builder, item.builder, item.version):
                return
            transitions.stage_finished(transition, stage, seconds=seconds, ok=False, note=reason)
            transitions.failed(transition, item.version, code=code, reason=reason, exit_code=exit_code)
            if stage == "start" and code == StartFailed.code and item.builder.job_type.stays_up:
                transitions.never_up(transition, item.version, reason)

        return Result(record)
