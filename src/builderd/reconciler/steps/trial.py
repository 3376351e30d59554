"""Trials and release commands.

A trial starts a candidate on a copy of the disk and without egress, to see whether it starts at all.

A candidate that exits early, or listens only on an unreachable address, is rejected while the old version keeps
serving. A failure for lack of a network is no verdict: then the candidate takes over and is judged there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from builderd.application import Application
from builderd.core.errors import MachineFault, NotFound, ReleaseFailed, StartFailed
from builderd.executions.service import hint_of
from builderd.qa.service import last_lines
from builderd.reconciler import record as transitions
from builderd.reconciler.failures import (
    describe_end,
    exited_early,
    listens_elsewhere,
    not_listening,
    quoted,
    wants_network,
)
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.reconciler.steps.start import HealthCheck, make_spec, put_bundle, wait_until_up
from builderd.sandboxes.model import EndCause, Sandbox, SandboxEnd, SandboxReport, SandboxState
from builderd.tokens.limits import BUSY_FACTOR, StartLimit

#: Causes of an end that the app itself is responsible for.
_OWN_ENDS = (EndCause.EXITED, EndCause.OUT_OF_MEMORY)
_STOPPED = SandboxEnd(EndCause.STOPPED, None, None)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """``refusal`` says why the candidate does not take over, None when nothing speaks against it."""

    trial: Sandbox
    end: SandboxEnd
    refusal: str | None


class Trials:
    """Try the candidate of ``item``; the builder itself serves on."""

    def __init__(self, application: Application) -> None:
        self._app = application

    async def run(self, item: WorkItem, trial: Sandbox) -> Result:
        """Start the trial or find it started, wait for its outcome, and remove it."""
        begun = self._app.clock.now()
        verdict = await self._verdict(item.for_candidate, trial)
        await self._remove(trial)
        seconds = (self._app.clock.now() - begun).total_seconds()

        def record(transition: Transition) -> None:
            self._ended(transition, verdict.trial, verdict.end)
            if not transitions.same_candidate(transition.builder, item.builder):
                return
            candidate = item.for_candidate.version
            if verdict.refusal is None:
                transitions.handed_over(transition, candidate)
                return
            transitions.stage_finished(transition, "start", seconds=seconds, ok=False, note=verdict.refusal)
            transitions.failed(transition, candidate, code=StartFailed.code, reason=verdict.refusal)

        return Result(record)

    async def end(self, trial: Sandbox) -> Result:
        """Remove a trial that is no longer needed; the result records its end."""
        report = await self._app.engine.sandboxes.report(trial.id)
        ended = replace(trial, started_at=report.started_at or trial.started_at)
        await self._remove(trial)
        end = report.end or _STOPPED
        return Result(lambda transition: self._ended(transition, ended, end), quiet=True)

    def _ended(self, transition: Transition, trial: Sandbox, end: SandboxEnd) -> None:
        tried = transition.uow.versions.get(trial.builder_id, trial.version)
        seconds = self._app.limits.start_seconds(tried.settings) if tried else self._app.limits.start_timeout
        longest = timedelta(seconds=BUSY_FACTOR * seconds)
        transitions.trial_ended(transition, trial, end, longest=longest)

    async def _verdict(self, item: WorkItem, trial: Sandbox) -> _Verdict:
        try:
            started = replace(trial, started_at=await self._started(item, trial))
        except NotFound as lack:
            return _Verdict(trial, _STOPPED, lack.message)
        wait = await wait_until_up(self._app, item, started, self._app.limits.start_seconds(item.version.settings))
        return await self._judge(item, started, wait)

    async def _started(self, item: WorkItem, trial: Sandbox) -> datetime:
        report = await self._app.engine.sandboxes.report(trial.id)
        if not _is_running(report):
            await self._remove(trial)
            size = item.version.settings.resources.disk_bytes
            await self._app.engine.disks.clone_disk(item.builder.disk, trial.disk, size)
            await put_bundle(self._app, item, trial.disk)
            report = await self._app.engine.sandboxes.start(await make_spec(self._app, item, trial))
        return report.started_at or trial.created_at

    async def _judge(self, item: WorkItem, trial: Sandbox, wait: HealthCheck) -> _Verdict:
        settings = item.version.settings
        if wait.reachable:
            return _Verdict(replace(trial, listening_at=self._app.clock.now()), _STOPPED, None)
        lines = await last_lines(self._app, trial.id)
        if wait.ended is None:
            is_elsewhere = listens_elsewhere(wait.listening, settings.port)
            reason = not_listening(wait.listening, settings.port, wait.seconds, lines) if is_elsewhere else None
            return _Verdict(trial, _STOPPED, reason)
        end = wait.ended.end or SandboxEnd(EndCause.UNKNOWN, None, None)
        is_own = end.cause in _OWN_ENDS and not wants_network(lines)
        port = settings.port if item.builder.job_type.must_listen else None
        hint = await hint_of(self._app, item.version, lines)
        return _Verdict(trial, end, exited_early(end, settings.resources, port, lines, hint) if is_own else None)

    async def _remove(self, trial: Sandbox) -> None:
        await self._app.engine.sandboxes.stop(trial.id, 0)
        await self._app.engine.sandboxes.remove(trial.id)
        await self._app.engine.disks.delete_disk(trial.disk)


def _is_running(report: SandboxReport) -> bool:
    """Return whether a trial begun before a crash of the service can continue; if not, it is started again."""
    if report.state is SandboxState.EXITED:
        return report.end is not None and report.end.cause in _OWN_ENDS
    return report.state is SandboxState.RUNNING


#: Seconds between two looks: often at first, since many releases are quick and visitors wait.
FIRST_PAUSE, LAST_PAUSE = 0.005, 0.1
#: Seconds after which looks are rarer.
QUICK = 1.0


class Releases:
    """Wait for release commands and judge their ends.

    A release command runs once on the disk of the version that takes over, before its app starts, as a sandbox of the
    builder's run that is recorded before the engine starts it. A service that is started after a crash finds it by its
    id and waits for it, or reads its end: the engine never runs one sandbox twice. An end that is unknown, such as
    after a restart of the machine, fails the deployment instead of running the command again.
    """

    def __init__(self, application: Application) -> None:
        self._app = application

    async def wait(self, sandbox: Sandbox) -> Result:
        """Wait until the command ends; stop it when its time is over. The next look records the end.

        The time counts from its start, also over a restart of the service, and is twice as long beside a busy machine.
        """
        sandboxes, clock = self._app.engine.sandboxes, self._app.clock
        before = (clock.now() - (sandbox.started_at or sandbox.created_at)).total_seconds()
        limit = StartLimit(self._app.engine, clock, self._app.limits.release_timeout, before)
        while True:
            report = await sandboxes.report(sandbox.id)
            if not report.alive:
                return Result()
            if limit.left <= 0:
                await sandboxes.stop(sandbox.id, 0)
                return Result()
            await clock.sleep(FIRST_PAUSE if limit.seconds < QUICK else LAST_PAUSE)

    async def record_end(self, item: WorkItem, sandbox: Sandbox, report: SandboxReport | None) -> Result:
        """Return the record of an ended release: the version may start, or its deployment has failed."""
        end = report.end if report and report.end else SandboxEnd(EndCause.UNKNOWN, None, None)
        now, begun = self._app.clock.now(), sandbox.started_at or sandbox.created_at
        seconds = max(0.0, ((end.at or now) - begun).total_seconds())
        failure = await self._failure(item, sandbox, end, seconds)

        def record(transition: Transition) -> None:
            uow, builder = transition.uow, transition.builder
            transitions.sandbox_ended(transition, sandbox, end=end, report=report)
            # A stop may have given the version of this release up: then its end says nothing of the one to run now.
            is_its_own = sandbox.version == item.version.number
            wanted = is_its_own and transitions.still_wanted(builder, item.builder, item.version)
            if wanted and failure is None:
                released = uow.versions.require(item.builder.id, item.version.number)
                uow.versions.save(replace(released, released=True))
                transitions.stage_finished(transition, "release", seconds=seconds, ok=True)
                return
            if wanted and failure is not None:
                reason = failure.message
                transitions.stage_finished(transition, "release", seconds=seconds, ok=False, note=reason)
                transitions.failed(transition, item.version, code=failure.code, reason=reason, exit_code=end.exit_code)
            transitions.discard_first_disk(transition, sandbox)

        return Result(record, lambda: self._app.engine.sandboxes.remove(sandbox.id))

    async def _failure(
        self, item: WorkItem, sandbox: Sandbox, end: SandboxEnd, seconds: float
    ) -> ReleaseFailed | MachineFault | None:
        """Return why the version must not start, None after a release that succeeded."""
        if (end.cause, end.exit_code) == (EndCause.EXITED, 0):
            return None
        lines, settings = await last_lines(self._app, sandbox.id), item.version.settings
        command, how = f"The release command ({settings.release})", describe_end(end, settings.resources)
        # A stop for another reason gives this version up: then its failure is not recorded.
        if end.cause not in (EndCause.EXITED, EndCause.OUT_OF_MEMORY, EndCause.STOPPED):
            return MachineFault(
                f"{command} was cut off ({how}), and is not run again by itself. "
                f"Look at what it did outside of its disk, then deploy again.{quoted(lines)}"
            )
        why = f"did not end within {seconds:.0f} s (limits.release_timeout), and was stopped."
        if end.cause is EndCause.OUT_OF_MEMORY:
            why = f"was {how}. Give it more with resources.memory."
        elif end.cause is EndCause.EXITED:
            why = f"failed: it {how}."
        hint = await hint_of(self._app, item.version, lines)
        more = f"All of its lines: builderd logs {item.builder.name} --stream release."
        parts = [f"{command} {why}", hint, more, 'To deploy without it: release = "".']
        return ReleaseFailed(" ".join(part for part in parts if part) + quoted(lines))
