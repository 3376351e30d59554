"""Transitions of versions and runs: judged by a gate, up, over, failed, taken over, rolled back, deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from builderd.domain.builders import Builder, Cause, Desired, Handover, JobType, Status, Visibility
from builderd.domain.errors import QaFailed
from builderd.domain.events import SYSTEM
from builderd.domain.failures import describe_end
from builderd.domain.ids import DiskId, new_id
from builderd.domain.prices import Prices
from builderd.domain.qa import Check, check_exit, gate_failure, gate_of_failure, gate_passed
from builderd.domain.reviews import Report, ReviewFailed, summary
from builderd.domain.sandboxes import Sandbox
from builderd.domain.versions import Version, VersionStatus
from builderd.reconciler.core.observe import WorkItem
from builderd.reconciler.core.transitions import Transition, add_event, as_stored, stage_finished
from builderd.services import candidates, qa, statuses, verdicts
from builderd.store import UnitOfWork


def reviewed(transition: Transition, version: Version, report: Report, *, seconds: float, reused: bool) -> None:
    """The review has judged the version; what does not pass fails with it."""
    verdict = verdicts.record(transition.uow, transition.builder, version.number, report, SYSTEM, transition.now)
    note = "passed" if verdict.passed else summary(verdict)
    stage_finished(transition, "review", seconds=seconds, ok=verdict.passed, note=note, reused=reused)
    if not verdict.passed:
        failed(transition, version, code=ReviewFailed.code, reason=note)


def qa_judged(transition: Transition, version: Version, gate: Sequence[Check], *, seconds: float) -> bool:
    """The gate has judged the version; whether the builder may continue with it."""
    uow, builder, now = transition.uow, transition.builder, transition.now
    passed = gate_passed(gate)
    note = "passed" if passed else gate_failure(gate)
    stage_finished(transition, "qa", seconds=seconds, ok=passed, note=note)
    goes_on = passed or not version.settings.require_qa
    if not goes_on:
        failed(transition, version, code=QaFailed.code, reason=note)
    qa.record_gate(uow, builder.id, version.number, gate, now)
    return goes_on


def qa_revised(transition: Transition, version: Version, gate: Sequence[Check]) -> None:
    """Replace the verdict of a version that passed and then failed while it was watched; an event says so."""
    uow, builder, now = transition.uow, transition.builder, transition.now
    qa.record_gate(uow, builder.id, version.number, gate, now)
    details = {"version": version.number, "qa_passed": False}
    add_event(transition, "qa.changed", reason=gate_failure(gate), details=details)
    uow.builders.save(replace(builder, updated_at=now))


def never_up(transition: Transition, version: Version, reason: str) -> None:
    """The version did not come as far as to be asked anything: its QA has failed at the first check."""
    if version.qa_passed is None and not version.settings.skip_qa:
        gate = gate_of_failure(reason, transition.builder.job_type)
        qa.record_gate(transition.uow, version.builder_id, version.number, gate, transition.now)


def running(transition: Transition, version: Version) -> None:
    """The run is up. What a restart after a crash wrote into the reason stays there."""
    uow, now = transition.uow, transition.now
    builder = taken_over(uow, transition.builder, now)
    deployed(transition, version)
    if builder.status is not Status.RUNNING:
        builder = statuses.change(uow, builder, Status.RUNNING, builder.cause.reason, now)
    elif builder.observed_generation != builder.generation:
        builder = replace(builder, status_reason=builder.cause.reason)
    uow.builders.save(
        replace(builder, observed_generation=builder.generation, last_active_at=now, updated_at=now, stop_kind=None)
    )


def deployed(transition: Transition, version: Version) -> None:
    """Record that the version was up once."""
    stored = as_stored(transition.uow, version)
    if stored.status not in (VersionStatus.PENDING, VersionStatus.FAILED):
        return
    up = replace(stored, status=VersionStatus.DEPLOYED, status_reason="", failure_code=None)
    transition.uow.versions.save(up)
    details = {"version": version.number}
    add_event(transition, "version.deployed", reason=deployed_reason(version), details=details)


def mark_terminal(
    uow: UnitOfWork, builder: Builder, status: Status, reason: str, now: datetime, *, exit_code: int | None = None
) -> None:
    """Stopped, completed, or a job that failed."""
    changed = statuses.change(uow, builder, status, reason, now)
    uow.builders.save(
        replace(changed, desired=Desired.STOPPED, observed_generation=builder.generation, exit_code=exit_code)
    )


def job_over(transition: Transition, item: WorkItem, status: Status, job: Sandbox, last_lines: Sequence[str]) -> None:
    """A job has completed or failed: from its end on, nothing is paid. Its exit code is all that its QA judges."""
    uow, now = transition.uow, transition.now
    assert job.end is not None, "only an ended job is over"
    reason = describe_end(job.end, item.version.settings.resources)
    builder = taken_over(uow, transition.builder, now)
    deployed(transition, item.version)
    mark_terminal(uow, builder, status, reason, now, exit_code=job.end.exit_code)
    uow.ledger.close(builder.id, job.end.at or now)
    if not item.version.settings.skip_qa:
        check = check_exit(job.end.exit_code, reason, last_lines)
        qa.record_gate(uow, builder.id, item.version.number, [check], now)


def failed(transition: Transition, version: Version, *, code: str, reason: str, exit_code: int | None = None) -> None:
    """A stage failed: the builder is kept in ``failed``, to be looked at and tried again; or its candidate fails."""
    uow, builder, prices, now = transition.uow, transition.builder, transition.prices, transition.now
    stored = as_stored(uow, version)
    if stored.status is VersionStatus.FAILED:  # it was tried again
        uow.versions.save(replace(stored, status_reason=reason, failure_code=code))
    candidates.fail(uow, builder, stored, code, reason, now)
    if version.number == builder.candidate_version:
        reject_candidate(uow, builder, prices, now)
        return
    changed = statuses.change(uow, builder, Status.FAILED, reason, now)
    uow.builders.save(
        replace(
            changed,
            desired=Desired.STOPPED,
            observed_generation=builder.generation,
            failure_code=code,
            exit_code=exit_code,
            handover=None,
        )
    )
    if builder.job_type is JobType.ONE_TIME:
        uow.ledger.close(builder.id, now)


def handed_over(transition: Transition, candidate: Version) -> None:
    """A new run, which is the candidate's; its disk has a name before there is one."""
    builder, begun = transition.builder, transition.builder.candidate
    assert begun is not None, "the step was chosen because there is one"
    transition.uow.builders.save(
        replace(
            builder,
            desired=Desired.RUNNING,
            cause=Cause(candidate.created_by, deployed_reason(candidate)),
            generation=builder.generation + 1,
            handover=Handover.FORWARD,
            candidate=replace(begun, disk=begun.disk or DiskId(new_id())),
            asleep_since=None,
            updated_at=transition.now,
        )
    )


def deployed_reason(version: Version) -> str:
    """Return in words the cause of the version's deployment."""
    what = f"rolled back to version {version.rolled_back_to}" if version.rolled_back_to else "deployed"
    return f"version {version.number} {what} by {version.created_by}"


def taken_over(uow: UnitOfWork, builder: Builder, now: datetime) -> Builder:
    """Return the builder with its candidate in place; unchanged without a handover. The caller saves it."""
    if builder.handover is Handover.FORWARD:
        version, disk = builder.to_run
        candidates.superseded(uow, builder, version, now)
        spare = (*builder.spare_disks, builder.disk)
        opens = builder.candidate is not None and builder.candidate.opens
        visibility = Visibility.PUBLIC if opens else builder.visibility
        builder = replace(builder, version=version, disk=disk, candidate=None, spare_disks=spare)
        builder = replace(builder, visibility=visibility, exit_code=None, failure_code=None)
    return replace(builder, handover=None)


def reject_candidate(uow: UnitOfWork, builder: Builder, prices: Prices, now: datetime) -> None:
    """Reject the candidate, such as after a failed QA gate, and roll back to the version that served before.

    Before the take-over the previous version still serves; after it, a rollback starts it again on its own disk.
    """
    freed = candidates.remove_candidate(uow, builder, prices, now)
    if builder.handover is Handover.FORWARD:
        freed = _rollback(uow, builder, freed, now)
    uow.builders.save(replace(freed, updated_at=now))


def _rollback(uow: UnitOfWork, builder: Builder, freed: Builder, now: datetime) -> Builder:
    """Return the builder after a rollback: the previous version starts again on its own disk."""
    if builder.status is Status.RUNNING and builder.job_type.stays_up:
        reason = f"version {builder.candidate_version} did not take over: version {builder.version} serves on"
        again = replace(freed, generation=builder.generation + 1, handover=Handover.AGAIN, cause=Cause(SYSTEM, reason))
        return replace(again, desired=Desired.RUNNING)
    if builder.job_type is JobType.ONE_TIME:
        uow.ledger.close(builder.id, now)
    if builder.status is Status.RUNNING:  # a job is not done twice
        freed = statuses.change(uow, freed, Status.STOPPED, f"stopped for version {builder.candidate_version}", now)
    return replace(freed, desired=Desired.STOPPED, observed_generation=builder.generation)


def deleted(transition: Transition) -> None:
    """Record the deletion: billing ends, and the row is kept for the ledger."""
    uow, builder, now = transition.uow, transition.builder, transition.now
    uow.ledger.close(builder.id, now)
    uow.build_logs.delete(builder.id)
    uow.qa_reports.delete(builder.id)
    uow.acceptances.delete(builder.id)
    uow.leases.delete_of(builder.id)
    changed = statuses.change(uow, builder, Status.DELETED, builder.cause.reason, now)
    uow.builders.save(replace(changed, deleted_at=now))
