"""Trial and handover: start a candidate on a copy of the disk and without egress, to see whether it starts at all.

A candidate that exits early, or listens only on an unreachable address, is rejected while the old version keeps
serving. A failure for lack of a network is no verdict: then the candidate takes over and is judged there.

Recorded: the planned trial; its end and what it cost; the handover, or the failed candidate.
Left when killed: a running trial of a recorded id, which the next try finds and waits for, or removes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from builderd.application import Application
from builderd.builders.model import Cause, Desired, Handover
from builderd.core.errors import NotFound, QaFailed, StartFailed
from builderd.core.ids import DiskId, new_id
from builderd.executions.service import hint_of
from builderd.money import service as spending
from builderd.previews.model import Address
from builderd.qa.service import last_lines, look_at_trial
from builderd.reconciler import record as transitions
from builderd.reconciler.failures import exited_early, listens_elsewhere, not_listening, wants_network
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.reconciler.steps.await_listening import HealthCheck, wait_until_up
from builderd.reconciler.steps.disk import put_files
from builderd.reconciler.steps.start import make_spec, new_sandbox
from builderd.sandboxes.model import EndCause, Sandbox, SandboxEnd, SandboxReport, SandboxState
from builderd.tokens.limits import BUSY_FACTOR
from builderd.versions.model import Version

#: Causes of an end that the app itself is responsible for.
_OWN_ENDS = (EndCause.EXITED, EndCause.OUT_OF_MEMORY)
_STOPPED = SandboxEnd(EndCause.STOPPED, None, None)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """``refusal`` says why the candidate does not take over, None when nothing speaks against it; of which stage."""

    trial: Sandbox
    end: SandboxEnd
    refusal: str | None
    wait: HealthCheck | None = None
    stage: str = "start"


def plan_trial(item: WorkItem) -> Result:
    disk = DiskId(new_id())

    def record(transition: Transition) -> None:
        if transitions.same_candidate(transition.builder, item.builder):
            trial = new_sandbox(transition.uow, item.for_candidate, disk, transition.now)
            transition.uow.sandboxes.add(replace(trial, trial=True))

    return Result(record, quiet=True)


async def try_candidate(app: Application, item: WorkItem, trial: Sandbox) -> Result:
    """Start the trial or find it started, wait for its outcome, and remove it."""
    begun = app.clock.now()
    verdict = await _verdict(app, item.for_candidate, trial)
    await _remove(app, trial)
    seconds = (app.clock.now() - begun).total_seconds()

    def record(transition: Transition) -> None:
        _ended(app, transition, verdict.trial, verdict.end)
        if not transitions.same_candidate(transition.builder, item.builder):
            return
        candidate = item.for_candidate.version
        if verdict.refusal is None:
            if verdict.wait is not None:
                transitions.leads_to(transition, candidate, verdict.wait.port, verdict.wait.listening)
            _handed_over(transition, candidate)
            return
        transitions.stage_finished(transition, verdict.stage, seconds=seconds, ok=False, note=verdict.refusal)
        code = QaFailed.code if verdict.stage == "qa" else StartFailed.code
        transitions.failed(transition, candidate, code=code, reason=verdict.refusal)

    return Result(record)


async def end_trial(app: Application, trial: Sandbox) -> Result:
    """Remove a trial that is no longer needed; the result records its end."""
    report = await app.engine.sandboxes.report(trial.id)
    ended = replace(trial, started_at=report.started_at or trial.started_at)
    await _remove(app, trial)
    end = report.end or _STOPPED
    return Result(lambda transition: _ended(app, transition, ended, end), quiet=True)


def hand_over(item: WorkItem) -> Result:
    def record(transition: Transition) -> None:
        if transitions.same_candidate(transition.builder, item.builder):
            _handed_over(transition, item.for_candidate.version)

    return Result(record)


def _handed_over(transition: Transition, candidate: Version) -> None:
    """A new run, which is the candidate's; its disk has a name before there is one."""
    builder, begun = transition.builder, transition.builder.candidate
    assert begun is not None, "the step was chosen because there is one"
    transition.uow.builders.save(
        replace(
            builder,
            desired=Desired.RUNNING,
            cause=Cause(candidate.created_by, transitions.deployed_reason(candidate)),
            generation=builder.generation + 1,
            handover=Handover.FORWARD,
            candidate=replace(begun, disk=begun.disk or DiskId(new_id())),
            asleep_since=None,
            updated_at=transition.now,
        )
    )


def _ended(app: Application, transition: Transition, trial: Sandbox, end: SandboxEnd) -> None:
    tried = transition.uow.versions.get(trial.builder_id, trial.version)
    seconds = app.limits.start_seconds(tried.settings) if tried else app.limits.start_timeout
    longest = timedelta(seconds=BUSY_FACTOR * seconds)
    _trial_ended(transition, trial, end, longest=longest)


def _trial_ended(transition: Transition, trial: Sandbox, end: SandboxEnd, *, longest: timedelta) -> None:
    """Record the end of a trial, and charge the time that it ran, ``longest`` at most."""
    uow, builder, prices, now = transition.uow, transition.builder, transition.prices, transition.now
    at = end.at or now
    uow.sandboxes.save(replace(trial, end=replace(end, at=at)))
    version = uow.versions.get(builder.id, trial.version)
    if trial.started_at is not None and version is not None:
        resources = version.settings.resources
        # The clock may have been set forward meanwhile.
        end_billed = min(max(at, trial.started_at), trial.started_at + longest)
        spending.bill_trial(uow, prices, builder, resources, trial.started_at, end_billed)


async def _verdict(app: Application, item: WorkItem, trial: Sandbox) -> _Verdict:
    try:
        started = replace(trial, started_at=await _started(app, item, trial))
    except NotFound as lack:
        return _Verdict(trial, _STOPPED, lack.message)
    wait = await wait_until_up(app, item, started, app.limits.start_seconds(item.version.settings))
    return await _judge(app, item, started, wait)


async def _started(app: Application, item: WorkItem, trial: Sandbox) -> datetime:
    report = await app.engine.sandboxes.report(trial.id)
    if not _is_running(report):
        await _remove(app, trial)
        size = item.version.settings.resources.disk_bytes
        await app.engine.disks.clone_disk(item.builder.disk, trial.disk, size)
        await put_files(app, item, trial.disk)
        report = await app.engine.sandboxes.start(await make_spec(app, item, trial))
    return report.started_at or trial.created_at


async def _judge(app: Application, item: WorkItem, trial: Sandbox, wait: HealthCheck) -> _Verdict:
    settings = item.version.settings
    if wait.reachable:
        ip = (await app.engine.sandboxes.report(trial.id)).ip
        address = Address(ip, wait.port) if ip and wait.port else None
        blank = await look_at_trial(app, item.builder, item.version, address) if address else ""
        return _Verdict(replace(trial, listening_at=app.clock.now()), _STOPPED, blank or None, wait, "qa")
    lines = await last_lines(app, trial.id)
    if wait.ended is None:
        is_elsewhere = listens_elsewhere(wait.listening, settings.port)
        reason = not_listening(wait.listening, settings.port, wait.seconds, lines) if is_elsewhere else None
        return _Verdict(trial, _STOPPED, reason)
    end = wait.ended.end or SandboxEnd(EndCause.UNKNOWN, None, None)
    is_own = end.cause in _OWN_ENDS and not wants_network(lines)
    port = settings.port if item.builder.job_type.must_listen else None
    hint = await hint_of(app, item.version, lines)
    return _Verdict(trial, end, exited_early(end, settings.resources, port, lines, hint) if is_own else None)


async def _remove(app: Application, trial: Sandbox) -> None:
    await app.engine.sandboxes.stop(trial.id, 0)
    await app.engine.sandboxes.remove(trial.id)
    await app.engine.disks.delete_disk(trial.disk)


def _is_running(report: SandboxReport) -> bool:
    """Return whether a trial begun before a crash of the service can continue; if not, it is started again."""
    if report.state is SandboxState.EXITED:
        return report.end is not None and report.end.cause in _OWN_ENDS
    return report.state is SandboxState.RUNNING
