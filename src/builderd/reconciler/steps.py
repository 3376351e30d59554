"""The steps: each touches the world first, idempotently and outside a transaction, and then says what to record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from builderd.domain import steps as domain
from builderd.domain.builders import Builder, Desired, JobType, Status, StopKind
from builderd.domain.errors import InstallFailed, NotFound, StartFailed
from builderd.domain.events import SYSTEM
from builderd.domain.failures import SHOWN_LINES, exited_early, exited_too_often, not_listening
from builderd.domain.ids import BuilderId, new_sandbox_id
from builderd.domain.logs import LogStream
from builderd.domain.sandboxes import (
    EndCause,
    Sandbox,
    SandboxEnd,
    SandboxReport,
    SandboxSpec,
    SandboxState,
)
from builderd.domain.steps import Observed
from builderd.domain.versions import NO_LAYER
from builderd.ports.store import UnitOfWork
from builderd.reconciler import records
from builderd.reconciler.install import Installs
from builderd.reconciler.listening import wait_until_listening
from builderd.reconciler.look import Subject
from builderd.reconciler.records import Record
from builderd.services import bundles, credentials, qa
from builderd.services.application import Application


async def _nothing() -> None:
    """What is left to do after most steps."""


@dataclass(frozen=True, slots=True)
class Result:
    """``record`` is written in one transaction; ``afterwards`` is tidying that a crash may leave to the next start.

    ``quiet``: nobody who waits for the builder need look at it for this.
    """

    record: Record | None = None
    afterwards: Callable[[], Awaitable[None]] = _nothing
    quiet: bool = False


class Steps:
    """Carries out the domain's steps with the application's ports."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._installs = Installs(application)

    async def perform(  # noqa: C901, PLR0912 -- one branch a step
        self, subject: Subject, seen: Observed, step: domain.Step
    ) -> Result:
        """Do one step. Raises what the ports raise."""
        match step:
            case domain.Install(number):
                return await self._install(subject.of(number))
            case domain.CreateDisk():
                return await self._create_disk(subject)
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
                return await self._stop_sandbox(subject, _open(seen))
            case domain.Freeze():
                return await self._freeze(subject, _open(seen))
            case domain.Thaw():
                return await self._thaw(_open(seen))
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
            case domain.Wait():
                return Result()

    async def _install(self, subject: Subject) -> Result:
        try:
            installed = await self._installs.install(subject)
        except InstallFailed as failure:
            return self._failed(subject, "install", failure.code, failure.message)

        now = self._now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            uow.versions.save(replace(subject.version, layer_key=installed.layer_key))
            records.installed(uow, builder, subject.version, installed, now)

        return Result(record)

    async def _create_disk(self, subject: Subject) -> Result:
        await self._app.engine.create_disk(subject.disk, subject.version.settings.resources.disk_bytes)
        now, prices = self._now(), self._app.prices
        return Result(lambda uow, builder: records.disk_made(uow, subject, prices, now), quiet=True)

    async def _put_bundle(self, subject: Subject) -> Result:
        bundle = await self._app.bundles.get(subject.version.bundle_hash)
        await self._app.engine.put_bundle(subject.disk, bundle)
        return Result()

    def _plan_sandbox(self, subject: Subject, attempt: int) -> Result:
        now = self._now()
        sandbox = Sandbox(
            id=new_sandbox_id(),
            builder_id=subject.builder.id,
            version=subject.version.number,
            run=subject.builder.run,
            attempt=attempt,
            created_at=now,
            disk=subject.disk,
        )

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if not records.same_wish(builder, subject.builder):
                return
            uow.sandboxes.add(sandbox)
            if attempt == 1:
                records.stage_started(uow, builder, "start", now)

        return Result(record)

    async def _start_sandbox(self, subject: Subject, sandbox: Sandbox) -> Result:
        try:
            secrets = await self._open_credentials(subject)
        except NotFound as lack:
            return self._failed(subject, "start", StartFailed.code, lack.message, since=sandbox.created_at)
        report = await self._app.engine.start(self._spec(subject, sandbox, secrets))
        prices = self._app.prices
        return Result(lambda uow, builder: records.sandbox_started(uow, subject, prices, sandbox, report), quiet=True)

    async def _open_credentials(self, subject: Subject) -> credentials.Opened:
        names, tenant = subject.version.settings.credentials, subject.builder.tenant_id
        if not names:
            return {}
        return await self._app.store.read(lambda uow: credentials.open_all(uow, self._app.vault, tenant, names))

    async def _await_listening(self, subject: Subject, sandbox: Sandbox) -> Result:
        port = subject.version.settings.port
        wait = await wait_until_listening(self._app, sandbox, port)
        if wait.reachable:
            return self._listens(subject, replace(sandbox, listening_at=self._now()))
        if wait.ended is not None:
            return Result()  # the next look records the end and judges it
        lines = await self._last_lines(sandbox)
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
        now = self._now()

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if not records.same_wish(builder, subject.builder):
                return
            seconds = (now - begun).total_seconds()
            goes_on = records.qa_judged(uow, builder, subject.version, gate, now, seconds=seconds)
            if goes_on and self._app.limits.qa_report:
                qa.want_report(uow, builder.id, subject.version.number, SYSTEM, now)

        return Result(record)

    async def _freeze(self, subject: Subject, sandbox: Sandbox) -> Result:
        if await self._visited(subject):
            return self._disturbed(subject)
        report = await self._app.engine.freeze(sandbox.id)
        if report.state is not SandboxState.FROZEN:
            return Result()  # the next look says what became of it
        at, prices = report.frozen_at or self._now(), self._app.prices
        return Result(lambda uow, builder: records.frozen(uow, builder, prices, sandbox, at))

    async def _thaw(self, sandbox: Sandbox) -> Result:
        report = await self._app.engine.thaw(sandbox.id)
        at, prices = report.thawed_at or self._now(), self._app.prices
        return Result(lambda uow, builder: records.thawed(uow, builder, prices, sandbox, at))

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

    async def _stop_sandbox(self, subject: Subject, sandbox: Sandbox) -> Result:
        builder = subject.builder
        if builder.stop_kind is StopKind.IDLE and builder.desired is Desired.STOPPED and await self._visited(subject):
            return self._disturbed(subject)
        report = await self._app.engine.stop(sandbox.id, self._app.limits.stop_grace)
        end = report.end or SandboxEnd(EndCause.STOPPED, None, None)
        return self._ended(subject, sandbox, end)

    def _record_end(self, subject: Subject, sandbox: Sandbox, report: SandboxReport | None) -> Result:
        end = report.end if report and report.end else SandboxEnd(EndCause.UNKNOWN, None, None)
        return self._ended(subject, sandbox, end)

    def _ended(self, subject: Subject, sandbox: Sandbox, end: SandboxEnd) -> Result:
        now, prices = self._now(), self._app.prices

        def record(uow: UnitOfWork, builder: Builder) -> None:
            records.sandbox_ended(uow, subject, prices, sandbox, end=end, now=now)
            builder = records.risen(uow, builder)
            if end.cause is not EndCause.STOPPED and records.same_wish(builder, subject.builder):
                records.crash_noted(uow, builder, subject, replace(sandbox, end=end), now)

        return Result(record, lambda: self._app.engine.remove(sandbox.id))

    async def _forget(self, subject: Subject) -> Result:
        await self._app.engine.delete_disk(subject.disk)
        await self._app.engine.delete_logs(subject.builder.id)
        now = self._now()
        return Result(
            lambda uow, builder: records.deleted(uow, builder, now),
            partial(self._drop_bundles, subject.builder.id),
        )

    async def _drop_bundles(self, builder_id: BuilderId) -> None:
        versions = await self._app.store.read(lambda uow: uow.versions.list(builder_id))
        for bundle_hash in {version.bundle_hash for version in versions}:
            await bundles.drop_unused(self._app, bundle_hash)

    async def _settle(self, subject: Subject, seen: Observed, status: Status) -> Result:
        now = self._now()
        last_lines = await self._last_lines(seen.ends[-1]) if status is Status.FAILED else []

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if not records.same_wish(builder, subject.builder):
                return
            if status is Status.STOPPED:
                records.rested(uow, builder, status, builder.desired_reason, now)
                return
            sandbox = seen.sandbox or seen.ends[-1]
            if not builder.settled and sandbox.listening_at is None:
                seconds = (now - sandbox.created_at).total_seconds()
                records.stage_finished(uow, builder, "start", now, seconds=seconds, ok=True)
            if status is Status.RUNNING:
                records.running(uow, builder, subject.version, now)
            else:
                records.job_over(uow, builder, subject, status, sandbox, last_lines, now)

        return Result(record)

    async def _give_up(self, subject: Subject, seen: Observed, too_often: bool) -> Result:
        last = seen.ends[-1]
        assert last.end is not None
        settings = subject.version.settings
        lines = await self._last_lines(last)
        if too_often:
            exits = domain.recent_crashes(seen.ends, seen.now)
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
        now = self._now()
        seconds = (now - since).total_seconds() if since else 0.0

        def record(uow: UnitOfWork, builder: Builder) -> None:
            if not records.same_wish(builder, subject.builder):
                return
            records.stage_finished(uow, builder, stage, now, seconds=seconds, ok=False, note=reason)
            records.failed(uow, builder, subject.version, code=code, reason=reason, now=now, exit_code=exit_code)
            if stage == "start" and builder.job_type is JobType.ALWAYS_ON:
                records.never_up(uow, subject.version, reason, now)

        return Result(record)

    def _spec(self, subject: Subject, sandbox: Sandbox, secrets: credentials.Opened) -> SandboxSpec:
        builder, settings = subject.builder, subject.version.settings
        layer_key = subject.version.layer_key
        platform = {
            "SERVICE_TOKEN": builder.service_token,
            "BUILDER_UUID": builder.id,
            "BUILDER_NAME": builder.name,
            "PREVIEW_URL": self._app.preview_domain.url(builder.host),
            "PORT": str(settings.port),
        }
        return SandboxSpec(
            id=sandbox.id,
            builder_id=builder.id,
            disk=subject.disk,
            hostname=builder.name,
            entrypoint=settings.entrypoint,
            port=settings.port,
            env={**settings.env, **credentials.as_env(secrets), **platform},
            resources=settings.resources,
            isolation=settings.isolation,
            layer_key=None if layer_key == NO_LAYER else layer_key,
            secret_files=credentials.as_files(secrets),
        )

    async def _last_lines(self, sandbox: Sandbox) -> list[str]:
        lines, _ = await self._app.engine.read_log(sandbox.id, tail=SHOWN_LINES)
        return [line.text for line in lines if line.stream is not LogStream.BUILD]

    def _now(self) -> datetime:
        return self._app.clock.now()


def _open(seen: Observed) -> Sandbox:
    assert seen.sandbox is not None, "the step was chosen because there is one"
    return seen.sandbox
