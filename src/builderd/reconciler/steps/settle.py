"""Settle: record the outcome of a run, which those who wait for it get: running, stopped, completed or failed.

Recorded: the status with its reason, the version as deployed, and a candidate that takes over or is given up.
Left when killed: nothing, since it only records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from builderd.application import Application
from builderd.backups import service as backups
from builderd.builders import candidates
from builderd.builders.model import Builder, Desired, Handover, Status, StopKind, Visibility, recent_crashes
from builderd.core.errors import StartFailed
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM
from builderd.executions.service import hint_of
from builderd.qa import service as qa
from builderd.qa.model import check_exit
from builderd.qa.service import last_lines
from builderd.reconciler import record as transitions
from builderd.reconciler.failures import describe_end, exited_early, exited_too_often
from builderd.reconciler.next_step import GiveUp, Observation
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.sandboxes.model import Sandbox, process_label
from builderd.versions.model import Version, VersionStatus, scaled


async def settle(app: Application, item: WorkItem, observation: Observation, status: Status) -> Result:
    """Return the record of the outcome of the present run."""
    lines = await last_lines(app, observation.ends[-1].id) if status is Status.FAILED else []

    def record(transition: Transition) -> None:
        builder, now = transition.builder, transition.now
        if not transitions.same_generation(builder, item.builder):
            return
        if status is Status.STOPPED:
            if builder.stop_kind is StopKind.IDLE:
                backups.keep_idle(transition.uow, app, builder, now)
            _mark_terminal(transition.uow, builder, status, builder.cause.reason, now)
            return
        sandbox = observation.sandbox or observation.ends[-1]
        if not builder.settled and sandbox.listening_at is None:
            seconds = (now - sandbox.created_at).total_seconds()
            transitions.stage_finished(transition, "start", seconds=seconds, ok=True)
        if status is Status.RUNNING:
            _running(transition, item.version)
        else:
            _job_over(transition, item, status, sandbox, lines)

    return Result(record)


async def give_up(app: Application, item: WorkItem, observation: Observation, step: GiveUp) -> Result:
    last = (step.process or observation).ends[-1]
    assert last.end is not None
    settings = item.version.settings
    lines = await last_lines(app, last.id)
    hint = await hint_of(app, item.version, lines)
    if step.too_often:
        exits = recent_crashes(observation.ends, observation.now)
        reason = exited_too_often(last.end, settings.resources, len(exits), lines, hint)
    else:
        port = settings.port if item.builder.job_type.must_listen else None
        process = f"{process_label(last)} ({settings.processes.get(last.process)})" if step.process else ""
        reason = exited_early(last.end, settings.resources, None if process else port, lines, hint, process)
    return transitions.stage_failed(
        app, item, "start", StartFailed.code, reason, since=last.created_at, exit_code=last.end.exit_code
    )


def _running(transition: Transition, version: Version) -> None:
    """The run is up. What a restart after a crash wrote into the reason stays there."""
    uow, now = transition.uow, transition.now
    builder = _taken_over(uow, transition.builder, now)
    _deployed(transition, version)
    if builder.status is not Status.RUNNING:
        builder = candidates.change(uow, builder, Status.RUNNING, builder.cause.reason, now)
    elif builder.observed_generation != builder.generation:
        builder = replace(builder, status_reason=builder.cause.reason)
    uow.builders.save(
        replace(builder, observed_generation=builder.generation, last_active_at=now, updated_at=now, stop_kind=None)
    )


def _deployed(transition: Transition, version: Version) -> None:
    """Record that the version was up once."""
    uow = transition.uow
    stored = uow.versions.require(version.builder_id, version.number)
    if stored.status not in (VersionStatus.PENDING, VersionStatus.FAILED):
        return
    up = replace(stored, status=VersionStatus.DEPLOYED, status_reason="", failure_code=None)
    uow.versions.save(up)
    reason, now = transitions.deployed_reason(version), transition.now
    candidates.record(uow, transition.builder, "version.deployed", SYSTEM, reason, now, version=version.number)


def _mark_terminal(
    uow: UnitOfWork, builder: Builder, status: Status, reason: str, now: datetime, *, exit_code: int | None = None
) -> None:
    """Stopped, completed, or a job that failed."""
    changed = candidates.change(uow, builder, status, reason, now)
    uow.builders.save(
        replace(changed, desired=Desired.STOPPED, observed_generation=builder.generation, exit_code=exit_code)
    )


def _job_over(transition: Transition, item: WorkItem, status: Status, job: Sandbox, last_lines: Sequence[str]) -> None:
    """A job has completed or failed: from its end on, nothing is paid. Its exit code is all that its QA judges."""
    uow, now = transition.uow, transition.now
    assert job.end is not None, "only an ended job is over"
    reason = describe_end(job.end, item.version.settings.resources)
    builder = _taken_over(uow, transition.builder, now)
    _deployed(transition, item.version)
    _mark_terminal(uow, builder, status, reason, now, exit_code=job.end.exit_code)
    uow.ledger.close(builder.id, job.end.at or now)
    if not item.version.settings.skip_qa:
        check = check_exit(job.end.exit_code, reason, last_lines)
        qa.record_gate(uow, builder.id, item.version.number, [check], now)


def _taken_over(uow: UnitOfWork, builder: Builder, now: datetime) -> Builder:
    """Return the builder with its candidate in place; unchanged without a handover. The caller saves it."""
    if builder.handover is Handover.FORWARD:
        version, disk = builder.to_run
        candidates.superseded(uow, builder, version, now)
        spare = (*builder.spare_disks, builder.disk)
        opens = builder.candidate is not None and builder.candidate.opens
        visibility = Visibility.PUBLIC if opens else builder.visibility
        builder = replace(builder, version=version, disk=disk, candidate=None, spare_disks=spare)
        # A process that the version before had has no sandbox any more.
        processes = uow.versions.require(builder.id, version).settings.processes if builder.scale else {}
        builder = replace(builder, visibility=visibility, exit_code=None, failure_code=None)
        builder = replace(builder, scale=scaled(builder.scale, processes))
    return replace(builder, handover=None)
