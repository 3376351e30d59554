"""The steps: each touches the world first, idempotently and outside a transaction, and then says what to record."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import datetime
from functools import partial

from builderd.domain import steps as domain
from builderd.domain.builders import Builder, Desired, Handover, JobType, Status, StopKind
from builderd.domain.errors import InstallFailed, NotFound, StartFailed
from builderd.domain.events import SYSTEM
from builderd.domain.failures import exited_early, exited_too_often, not_listening
from builderd.domain.ids import BuilderId, DiskId, new_id
from builderd.domain.previews import Route
from builderd.domain.qa import gate_passed
from builderd.domain.restarts import recent_crashes
from builderd.domain.sandboxes import (
    EndCause,
    Sandbox,
    SandboxEnd,
    SandboxReport,
    SandboxState,
)
from builderd.domain.steps import Observed
from builderd.ports.store import UnitOfWork
from builderd.reconciler.core import records
from builderd.reconciler.core.look import Subject
from builderd.reconciler.core.result import Result
from builderd.reconciler.stages import handover
from builderd.reconciler.stages.install import Installs
from builderd.reconciler.stages.listening import wait_until_listening
from builderd.reconciler.stages.starting import last_lines, make_spec, new_sandbox, put_bundle
from builderd.reconciler.stages.trials import Trials
from builderd.services import backups, bundles, qa, verdicts
from builderd.services.application import Application

log = logging.getLogger(__name__)


class Steps:
    """Carries out the domain's steps with the application's ports."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._installs = Installs(application)
        self._trials = Trials(application)
        self._removals: set[asyncio.Task[None]] = set()

    async def perform(  # noqa: C901, PLR0912 -- one branch a step
        self, subject: Subject, seen: Observed, step: domain.Step
    ) -> Result:
        """Do one step. Raises what the ports raise."""
        match step:
            case domain.Review(number):
                return await self._review(subject.of(number))
            case domain.Install(number):
                return await self._install(subject.of(number))
            case domain.CreateDisk():
                return await self._create_disk(subject)
            case domain.RecoverDisk():
                return self._recover_disk(subject)
            case domain.PutBundle():
                return await self._put_bundle(subject)
            case domain.PlanSandbox(attempt):
                return self._plan_sandbox(subject, attempt)
            case domain.StartSandbox():
                return await self._start_sandbox(subject, _open(seen))
            case domain.AwaitListening():
                return await self._await_listening(subject, _open(seen))
            case domain.CheckApp():
                return await self._check_app(subject, _open(seen))
            case domain.StopSandbox():
                return await self._stop_sandbox(subject, _open(seen), seen.report, drain=step.drain)
            case domain.Freeze():
                return await self._freeze(subject, _open(seen), seen.report)
            case domain.Thaw(route):
                return await self._thaw(_open(seen), route, seen.report)
            case domain.RecordEnd():
                return self._record_end(subject, _open(seen), seen.report)
            case domain.SetRoute(route):
                await self._app.previews.put(route)
                return Result()
            case domain.RemoveRoute():
                await self._app.previews.remove(subject.builder.host)
                return Result()
            case domain.Forget():
                return await self._forget(subject)
            case domain.Settle(status):
                return await self._settle(subject, seen, status)
            case domain.GiveUp(too_often):
                return await self._give_up(subject, seen, too_often)
            case domain.PlanTrial():
                return self._plan_trial(subject)
            case domain.TryCandidate():
                return await self._trials.run(subject, _trial(seen))
            case domain.EndTrial():
                return await self._trials.end(_trial(seen))
            case domain.HandOver():
                return self._hand_over(subject)
            case domain.DropDisks():
                return await self._drop_disks(subject)
            case domain.Wait():
                return Result()

    async def leave(self, builder_id: BuilderId) -> None:
        """Nobody works on this builder any more: end what goes on beside its steps."""
        await self._installs.leave(builder_id)

    async def _review(self, subject: Subject) -> Result:
        begun = self._now()
        if subject.version.layer_key is None:
            await self._installs.begin(subject)
        tenant_id = subject.builder.tenant_id
        report, reused = await verdicts.report_of(self._app, tenant_id, subject.version)
        now, prices = self._now(), self._app.prices
        seconds = (now - begun).total_seconds()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if records.still_wanted(builder, subject.builder, subject.version):
                records.reviewed(uow, builder, subject.version, prices, report, now, seconds=seconds, reused=reused)

        return Result(record)

    async def _install(self, subject: Subject) -> Result:
        try:
            installed = await self._installs.install(subject)
        except InstallFailed as failure:
            return self._failed(subject, "install", failure.code, failure.message)

        now = self._now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            version = records.as_stored(uow, subject.version)
            uow.versions.save(replace(version, layer_key=installed.layer_key))
            records.installed(uow, builder, subject.version, installed, now)

        return Result(record)

    async def _create_disk(self, subject: Subject) -> Result:
        anew = await self._app.engine.disk(subject.builder.disk) is None
        await self._make_disk(subject)
        now, prices = self._now(), self._app.prices
        return Result(lambda uow, builder: records.disk_made(uow, subject, prices, now, anew=anew), quiet=True)

    def _recover_disk(self, subject: Subject) -> Result:
        """The backups' schedule does it, and says so: this only has it done."""
        now = self._now()
        return Result(lambda uow, builder: backups.recover(uow, self._app, builder, subject.builder.disk, now))

    async def _make_disk(self, subject: Subject) -> None:
        """A candidate takes over the data on a copy, so that it can be given up without a trace."""
        engine, builder, size = self._app.engine, subject.builder, subject.version.settings.resources.disk_bytes
        copies = subject.disk != builder.disk and await engine.disk(subject.disk) is None
        if copies and await engine.disk(builder.disk) is not None:
            await engine.clone_disk(builder.disk, subject.disk, size)
        else:
            await engine.create_disk(subject.disk, size)

    async def _put_bundle(self, subject: Subject) -> Result:
        await put_bundle(self._app, subject, subject.disk)
        return Result()

    def _plan_sandbox(self, subject: Subject, attempt: int) -> Result:
        now = self._now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if not records.same_wish(builder, subject.builder):
                return
            uow.sandboxes.add(new_sandbox(uow, subject, subject.disk, now))
            if attempt == 1:
                records.stage_started(uow, builder, "start", now)

        return Result(record)

    def _plan_trial(self, subject: Subject) -> Result:
        now, disk = self._now(), DiskId(new_id())

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if records.same_candidate(builder, subject.builder):
                uow.sandboxes.add(replace(new_sandbox(uow, subject.beside, disk, now), trial=True))

        return Result(record, quiet=True)

    def _hand_over(self, subject: Subject) -> Result:
        now = self._now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if records.same_candidate(builder, subject.builder):
                records.handed_over(uow, builder, subject.beside.version, now)

        return Result(record)

    async def _drop_disks(self, subject: Subject) -> Result:
        dropped = subject.builder.spare_disks
        for disk in dropped:
            await self._app.engine.delete_disk(disk)

        def record(uow: UnitOfWork, builder: Builder) -> None:
            left = tuple(disk for disk in builder.spare_disks if disk not in dropped)
            uow.builders.save(replace(builder, spare_disks=left))

        return Result(record, quiet=True)

    async def _start_sandbox(self, subject: Subject, sandbox: Sandbox) -> Result:
        try:
            spec = await make_spec(self._app, subject, sandbox)
        except NotFound as lack:
            return self._failed(subject, "start", StartFailed.code, lack.message, since=sandbox.created_at)
        report = await self._app.engine.start(spec)
        version, prices = subject.version, self._app.prices

        def record(uow: UnitOfWork, builder: Builder) -> None:
            records.sandbox_started(uow, subject.builder, version, prices, sandbox, report)

        return Result(record, quiet=True)

    async def _await_listening(self, subject: Subject, sandbox: Sandbox) -> Result:
        port = subject.version.settings.port
        wait = await wait_until_listening(self._app, sandbox, port, await self._patience(subject))
        if wait.reachable:
            return self._listens(subject, replace(sandbox, listening_at=self._now()))
        if wait.ended is not None:
            return Result()  # the next look records the end and judges it
        lines = await last_lines(self._app, sandbox)
        reason = not_listening(wait.listening, port, wait.seconds, lines)
        return self._failed(subject, "start", StartFailed.code, reason, since=sandbox.created_at)

    def _listens(self, subject: Subject, sandbox: Sandbox) -> Result:
        now = self._now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            uow.sandboxes.save(sandbox)
            if records.same_wish(builder, subject.builder) and not builder.settled:
                seconds = (now - sandbox.created_at).total_seconds()
                records.stage_finished(uow, builder, "start", now, seconds=seconds, ok=True)

        return Result(record, quiet=True)

    async def _check_app(self, subject: Subject, sandbox: Sandbox) -> Result:
        begun = self._now()
        gate = await qa.judge(self._app, subject.builder, subject.version, sandbox)
        if not gate_passed(gate) and await self._lost_its_monitor(sandbox):
            return Result()  # the machine's fault: the next look restarts the app, and it is judged then
        now, prices = self._now(), self._app.prices

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if not records.still_wanted(builder, subject.builder, subject.version):
                return
            seconds = (now - begun).total_seconds()
            goes_on = records.qa_judged(uow, builder, subject.version, prices, gate, now, seconds=seconds)
            if goes_on and self._app.limits.qa_report:
                qa.want_report(uow, builder.id, subject.version.number, SYSTEM, now)

        return Result(record)

    async def _lost_its_monitor(self, sandbox: Sandbox) -> bool:
        end = (await self._app.engine.report(sandbox.id)).end
        return end is not None and end.cause is EndCause.MONITOR_LOST

    async def _patience(self, subject: Subject) -> float:
        """How long the app may take to listen, in seconds."""
        limits = self._app.limits
        if subject.builder.handover is not Handover.FORWARD or subject.builder.status is not Status.RUNNING:
            return limits.start_timeout
        trial, old = await self._app.store.read(lambda uow: handover.last_starts(uow, subject))
        return handover.patience(trial, old, limits.handover_timeout, limits.start_timeout)

    async def _freeze(self, subject: Subject, sandbox: Sandbox, before: SandboxReport | None) -> Result:
        if await self._visited(subject):
            return self._disturbed(subject)
        report = await self._app.engine.freeze(sandbox.id)
        if report.state is not SandboxState.FROZEN:
            return Result()  # the next look says what became of it
        at, prices = report.frozen_at or self._now(), self._app.prices

        def record(uow: UnitOfWork, builder: Builder) -> None:
            records.caught_up(uow, builder, prices, sandbox, before)
            records.frozen(uow, builder, prices, sandbox, at)

        return Result(record)

    async def _thaw(self, sandbox: Sandbox, route: Route, before: SandboxReport | None) -> Result:
        report = await self._app.engine.thaw(sandbox.id)
        if not report.alive:
            return Result()  # the next look says what became of it
        await self._app.previews.put(route)
        at, prices = report.thawed_at or self._now(), self._app.prices

        def record(uow: UnitOfWork, builder: Builder) -> None:
            records.caught_up(uow, builder, prices, sandbox, before)
            records.thawed(uow, builder, prices, sandbox, at)

        return Result(record)

    async def _visited(self, subject: Subject) -> bool:
        """Whether a visitor was let in before visitors were held."""
        activity = (await self._app.previews.activity()).get(subject.builder.host)
        return activity is not None and activity.open_connections > 0

    def _disturbed(self, subject: Subject) -> Result:
        """It is used after all."""
        now = self._now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            same = builder.stop_kind is subject.builder.stop_kind
            if same and records.same_wish(builder, subject.builder):
                records.disturbed(uow, builder, now)

        return Result(record)

    async def _stop_sandbox(
        self, subject: Subject, sandbox: Sandbox, before: SandboxReport | None, *, drain: bool
    ) -> Result:
        builder, grace = subject.builder, self._app.limits.stop_grace
        if builder.stop_kind is StopKind.IDLE and builder.desired is Desired.STOPPED and await self._visited(subject):
            return self._disturbed(subject)
        if drain:
            grace = handover.grace(grace, await handover.drained(self._app, builder.host))
        report = await self._app.engine.stop(sandbox.id, grace)
        end = report.end or SandboxEnd(EndCause.STOPPED, None, None)
        ended = self._ended(subject, sandbox, end, report, before)
        # Visitors wait for what comes next, and not for this.
        return replace(ended, afterwards=partial(self._remove_meanwhile, sandbox)) if drain else ended

    async def _remove_meanwhile(self, sandbox: Sandbox) -> None:
        removal = asyncio.create_task(self._app.engine.remove(sandbox.id))
        self._removals.add(removal)
        removal.add_done_callback(self._removed)

    def _removed(self, removal: asyncio.Task[None]) -> None:
        self._removals.discard(removal)
        if not removal.cancelled() and removal.exception() is not None:
            log.warning("sandbox removal failed, retrying at the next sweep", exc_info=removal.exception())

    def _record_end(self, subject: Subject, sandbox: Sandbox, report: SandboxReport | None) -> Result:
        end = report.end if report and report.end else SandboxEnd(EndCause.UNKNOWN, None, None)
        return self._ended(subject, sandbox, end, report, report)

    def _ended(
        self,
        subject: Subject,
        sandbox: Sandbox,
        end: SandboxEnd,
        report: SandboxReport | None,
        before: SandboxReport | None,
    ) -> Result:
        """``before`` is what the engine said before it was stopped: that thaws it, which is no turn of its own."""
        now, prices = self._now(), self._app.prices

        def record(uow: UnitOfWork, builder: Builder) -> None:
            records.caught_up(uow, builder, prices, sandbox, before)
            records.sandbox_ended(uow, builder, prices, sandbox, end=end, report=report, now=now)
            builder = records.risen(uow, builder)
            if end.cause is not EndCause.STOPPED and records.same_wish(builder, subject.builder):
                records.crash_noted(uow, builder, subject, replace(sandbox, end=end), now)

        return Result(record, lambda: self._app.engine.remove(sandbox.id))

    async def _forget(self, subject: Subject) -> Result:
        engine, forgotten = self._app.engine, subject.builder
        holds = forgotten.backup_interval_hours > 0 and await engine.disk(forgotten.disk) is not None
        for disk in (None if holds else forgotten.disk, forgotten.candidate_disk, *forgotten.spare_disks):
            if disk is not None:
                await engine.delete_disk(disk)
        await engine.delete_logs(forgotten.id)
        now = self._now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if holds:
                backups.keep_last(uow, self._app, builder, now)
            records.deleted(uow, builder, now)

        return Result(record, partial(self._drop_bundles, subject.builder.id))

    async def _drop_bundles(self, builder_id: BuilderId) -> None:
        versions = await self._app.store.read(lambda uow: uow.versions.list(builder_id))
        for bundle_hash in {version.bundle_hash for version in versions}:
            await bundles.drop_unused(self._app, bundle_hash)

    async def _settle(self, subject: Subject, seen: Observed, status: Status) -> Result:
        now = self._now()
        lines = await last_lines(self._app, seen.ends[-1]) if status is Status.FAILED else []

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if not records.same_wish(builder, subject.builder):
                return
            if status is Status.STOPPED:
                if builder.stop_kind is StopKind.IDLE:
                    backups.keep_idle(uow, self._app, builder, now)
                records.rested(uow, builder, status, builder.desired_reason, now)
                return
            sandbox = seen.sandbox or seen.ends[-1]
            if not builder.settled and sandbox.listening_at is None:
                seconds = (now - sandbox.created_at).total_seconds()
                records.stage_finished(uow, builder, "start", now, seconds=seconds, ok=True)
            if status is Status.RUNNING:
                records.running(uow, builder, subject.version, now)
            else:
                records.job_over(uow, builder, subject, status, sandbox, lines, now)

        return Result(record)

    async def _give_up(self, subject: Subject, seen: Observed, too_often: bool) -> Result:
        last = seen.ends[-1]
        assert last.end is not None
        settings = subject.version.settings
        lines = await last_lines(self._app, last)
        if too_often:
            exits = recent_crashes(seen.ends, seen.now)
            reason = exited_too_often(last.end, settings.resources, len(exits), lines)
        else:
            reason = exited_early(last.end, settings.resources, settings.port, lines)
        return self._failed(
            subject, "start", StartFailed.code, reason, since=last.created_at, exit_code=last.end.exit_code
        )

    def _failed(
        self,
        subject: Subject,
        stage: str,
        code: str,
        reason: str,
        *,
        since: datetime | None = None,
        exit_code: int | None = None,
    ) -> Result:
        now, prices = self._now(), self._app.prices
        seconds = (now - since).total_seconds() if since else 0.0

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if not records.still_wanted(builder, subject.builder, subject.version):
                return
            records.stage_finished(uow, builder, stage, now, seconds=seconds, ok=False, note=reason)
            records.failed(
                uow, builder, subject.version, prices, code=code, reason=reason, now=now, exit_code=exit_code
            )
            if stage == "start" and builder.job_type is JobType.ALWAYS_ON:
                records.never_up(uow, subject.version, reason, now)

        return Result(record)

    def _now(self) -> datetime:
        return self._app.clock.now()


def _open(seen: Observed) -> Sandbox:
    assert seen.sandbox is not None, "the step was chosen because there is one"
    return seen.sandbox


def _trial(seen: Observed) -> Sandbox:
    assert seen.trial is not None, "the step was chosen because there is one"
    return seen.trial
