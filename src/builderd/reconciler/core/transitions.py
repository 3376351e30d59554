"""Records: what the reconciler writes down, each in one transaction that applies only while its claim holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from builderd.domain.builders import Builder, Desired, Handover, JobType, Status, Visibility
from builderd.domain.errors import QaFailed, ReviewFailed
from builderd.domain.events import SYSTEM, Event
from builderd.domain.failures import describe_end, restart_note
from builderd.domain.ids import BuilderId, DiskId, new_id
from builderd.domain.layers import Installed
from builderd.domain.logs import LogLine, LogStream
from builderd.domain.prices import Billing, Prices
from builderd.domain.qa import Check, gate_failure, gate_passed
from builderd.domain.qa_gate import check_exit, gate_of_failure
from builderd.domain.restarts import MAX_EXITS, recent_crashes
from builderd.domain.reviews import Report, summary
from builderd.domain.sandboxes import Sandbox, SandboxEnd, SandboxReport, SandboxState
from builderd.domain.versions import NO_LAYER, Version, VersionStatus
from builderd.ports.store import UnitOfWork
from builderd.reconciler.core.observe import StoredState, WorkItem, read
from builderd.services import candidates, credentials, deployments, ledger, qa, statuses, verdicts
from builderd.services.application import Application

REUSED = "The requirements are as they were before: their layer is reused."

#: Written inside a transaction, on the builder as it is then.
Record = Callable[[UnitOfWork, Builder], None]


class ClaimLost(Exception):
    """Raised when another control plane holds the builder: stop working on it."""


async def apply(application: Application, builder_id: BuilderId, record: Record) -> StoredState | None:
    """Apply the record to the locked builder; return the stored state after it. Raises ``ClaimLost``."""

    def guarded(uow: UnitOfWork) -> StoredState | None:
        builder = uow.builders.get(builder_id, lock=True)
        if builder is None or not uow.builders.holds(builder_id, application.instance, application.clock.now()):
            raise ClaimLost
        record(uow, builder)
        return read(uow, builder_id)

    return await application.store.write(guarded)


def same_generation(builder: Builder, looked_at: Builder) -> bool:
    """Return whether the desired state and run are those the step was chosen for; if not, discard its outcome."""
    return builder.desired is looked_at.desired and builder.run == looked_at.run


def same_candidate(builder: Builder, looked_at: Builder) -> bool:
    """Return whether the candidate and the handover are unchanged since the step was chosen."""
    return builder.candidate == looked_at.candidate and builder.handover is looked_at.handover


def still_wanted(builder: Builder, looked_at: Builder, version: Version) -> bool:
    """Return whether a step's outcome for this version, the one to run or the candidate, still applies."""
    if version.number == looked_at.to_run[0]:
        return same_generation(builder, looked_at)
    return same_candidate(builder, looked_at)


def as_stored(uow: UnitOfWork, version: Version) -> Version:
    """Read the version again: a gate may have judged it meanwhile."""
    found = uow.versions.get(version.builder_id, version.number)
    assert found is not None, "a builder's versions are always stored"
    return found


def stage_started(uow: UnitOfWork, builder: Builder, stage: str, now: datetime) -> None:
    _event(uow, builder, "stage.started", now, reason=stage, details={"stage": stage})


def installed(uow: UnitOfWork, builder: Builder, version: Version, layer: Installed, now: datetime) -> None:
    """The version's layer is there. The build log says so also where nothing had to be built."""
    note = "reused" if layer.reused else "made"
    if layer.layer_key == NO_LAYER:
        note = "nothing to install"
    elif layer.reused:
        uow.build_logs.add(builder.id, version.number, [LogLine(now, LogStream.BUILD, REUSED)])
    stage_finished(uow, builder, "install", now, seconds=layer.seconds, ok=True, note=note, reused=layer.reused)


def stage_finished(
    uow: UnitOfWork,
    builder: Builder,
    stage: str,
    now: datetime,
    *,
    seconds: float,
    ok: bool,
    note: str = "",
    **more: bool,
) -> None:
    details = {"stage": stage, "seconds": round(seconds, 3), "ok": ok, **more}
    _event(uow, builder, "stage.finished", now, reason=note or stage, details=details)


def reviewed(
    uow: UnitOfWork,
    builder: Builder,
    version: Version,
    prices: Prices,
    report: Report,
    now: datetime,
    *,
    seconds: float,
    reused: bool,
) -> None:
    """The review has judged the version; what does not pass fails with it."""
    verdict = verdicts.record(uow, builder, version.number, report, SYSTEM, now)
    note = "passed" if verdict.passed else summary(verdict)
    stage_finished(uow, builder, "review", now, seconds=seconds, ok=verdict.passed, note=note, reused=reused)
    if not verdict.passed:
        failed(uow, builder, version, prices, code=ReviewFailed.code, reason=note, now=now)


def disk_made(uow: UnitOfWork, item: WorkItem, prices: Prices, now: datetime, *, anew: bool) -> None:
    """Record the builder's disk, which is billed from now on.

    ``anew``: the builder had none; if it was up before, the content of its previous disk is lost.
    """
    was_up = any(one.status in deployments.WAS_UP for one in uow.versions.list(item.builder.id))
    if anew and was_up:
        reason = "its disk is gone, and there is no backup of it: it begins anew with the files of its version"
        _event(uow, item.builder, "disk.lost", now, reason=reason, details={"disk": item.builder.disk})
    if uow.ledger.current(item.builder.id) is None:
        ledger.bill(uow, prices, item.builder, item.version.settings.resources, Billing.STOPPED, now)


def sandbox_started(
    uow: UnitOfWork, builder: Builder, version: Version, prices: Prices, sandbox: Sandbox, report: SandboxReport
) -> Sandbox:
    """Record the start of a sandbox: from then on running time is billed. ``version`` is the one that runs."""
    at = report.started_at or sandbox.created_at
    started = replace(sandbox, ip=report.ip, started_at=at)
    uow.sandboxes.save(started)
    ledger.bill(uow, prices, builder, version.settings.resources, Billing.RUNNING, at)
    credentials.used(uow, builder.tenant_id, version.settings.credentials, builder.id, at)
    details = {"sandbox": sandbox.id, "version": sandbox.version, "attempt": sandbox.attempt}
    _event(uow, builder, "sandbox.started", at, reason="started", details=details)
    return started


def sandbox_ended(
    uow: UnitOfWork,
    builder: Builder,
    prices: Prices,
    sandbox: Sandbox,
    *,
    end: SandboxEnd,
    report: SandboxReport | None,
    now: datetime,
) -> None:
    """Record the end of a sandbox: from then on only the disk is billed, that of the version to run next.

    A sandbox whose start the engine reports, but the record lacks since the service died in between, is billed for its
    time all the same.
    """
    ran = uow.versions.get(builder.id, sandbox.version)
    following = ran if builder.to_run[0] == sandbox.version else uow.versions.get(builder.id, builder.to_run[0])
    assert ran is not None, "a builder's versions are always stored"
    assert following is not None, "a builder's versions are always stored"
    if sandbox.started_at is None and report is not None and report.started_at is not None:
        sandbox = sandbox_started(uow, builder, ran, prices, sandbox, report)
    at = end.at or now
    uow.sandboxes.save(replace(sandbox, end=replace(end, at=at)))
    if sandbox.started_at is None:
        return
    ledger.bill(uow, prices, builder, following.settings.resources, Billing.STOPPED, at)
    reason = describe_end(end, ran.settings.resources)
    details = {
        "sandbox": sandbox.id,
        "version": sandbox.version,
        "exit_code": end.exit_code,
        "cause": end.cause.value,
    }
    _event(uow, builder, "sandbox.ended", at, reason=reason, details=details)


def caught_up(
    uow: UnitOfWork, builder: Builder, prices: Prices, sandbox: Sandbox, report: SandboxReport | None
) -> None:
    """Record a freeze and a thaw that the engine made just before the service was killed: at most one of each.

    ``report`` was read before the changes that are recorded next.
    """
    if report is None or report.frozen_at is None:
        return
    by = replace(builder, desired_by=SYSTEM, desired_reason="recorded after an interruption")
    # The sandbox's state decides which came last when both have the same time.
    stands = report.state is SandboxState.FROZEN
    paid = uow.ledger.current(builder.id)
    if paid is not None and paid.billing is Billing.RUNNING and (stands or report.frozen_at > paid.start):
        frozen(uow, by, prices, sandbox, report.frozen_at)
    if not stands and report.thawed_at is not None and report.thawed_at >= report.frozen_at:
        thawed(uow, by, prices, sandbox, report.thawed_at)


def frozen(uow: UnitOfWork, builder: Builder, prices: Prices, sandbox: Sandbox, at: datetime) -> None:
    """Record a freeze: from then on only memory and disk are billed."""
    _record_billing(uow, builder, sandbox, "sandbox.frozen", at, lambda: ledger.freeze(uow, prices, builder, at))


def thawed(uow: UnitOfWork, builder: Builder, prices: Prices, sandbox: Sandbox, at: datetime) -> None:
    """Record a thaw: from then on running time is billed again."""
    _record_billing(uow, builder, sandbox, "sandbox.thawed", at, lambda: ledger.thaw(uow, prices, builder, at))


def _record_billing(
    uow: UnitOfWork, builder: Builder, sandbox: Sandbox, kind: str, at: datetime, change_billing: Callable[[], None]
) -> None:
    """Record the event only if the ledger changed too: a repeated step records none."""
    before = uow.ledger.current(builder.id)
    change_billing()
    if uow.ledger.current(builder.id) != before:
        details = {"sandbox": sandbox.id, "version": sandbox.version}
        uow.events.add(
            Event(builder.tenant_id, builder.id, at, kind, builder.desired_by, builder.desired_reason, details)
        )


def abort_freeze(uow: UnitOfWork, builder: Builder, now: datetime) -> None:
    """Abort going to sleep: a visitor arrived meanwhile, and the builder keeps running."""
    uow.builders.save(
        replace(
            builder,
            desired=Desired.RUNNING,
            desired_reason="visited",
            asleep_since=None,
            stop_kind=None,
            last_active_at=now,
        )
    )


def clear_sleep(uow: UnitOfWork, builder: Builder) -> Builder:
    """Clear the sleep mark of a builder whose sandbox is gone."""
    if builder.asleep_since is None:
        return builder
    awake = replace(builder, asleep_since=None)
    uow.builders.save(awake)
    return awake


def crash_noted(uow: UnitOfWork, builder: Builder, item: WorkItem, sandbox: Sandbox, now: datetime) -> None:
    """An app that was up and is being brought back says so in its reason and in an event; its status stays."""
    is_up = builder.desired is Desired.RUNNING and builder.status is Status.RUNNING
    if not is_up or builder.job_type is JobType.ONE_TIME or sandbox.end is None:
        return
    exits = len(recent_crashes(uow.sandboxes.of_run(builder.id, builder.run), now))
    if exits >= MAX_EXITS:
        return  # it is given up
    note = restart_note(sandbox.end, item.version.settings.resources, exits, MAX_EXITS)
    details = {"sandbox": sandbox.id, "version": sandbox.version, "cause": sandbox.end.cause.value}
    _event(uow, builder, "builder.restarting", now, reason=note, details=details)
    uow.builders.save(replace(builder, status_reason=note, updated_at=now))


def qa_judged(
    uow: UnitOfWork,
    builder: Builder,
    version: Version,
    prices: Prices,
    gate: Sequence[Check],
    now: datetime,
    *,
    seconds: float,
) -> bool:
    """The gate has judged the version; whether the builder may go on with it."""
    passed = gate_passed(gate)
    note = "passed" if passed else gate_failure(gate)
    stage_finished(uow, builder, "qa", now, seconds=seconds, ok=passed, note=note)
    goes_on = passed or not version.settings.require_qa
    if not goes_on:
        failed(uow, builder, version, prices, code=QaFailed.code, reason=note, now=now)
    qa.record_gate(uow, builder.id, version.number, gate, now)
    return goes_on


def qa_revised(uow: UnitOfWork, builder: Builder, version: Version, gate: Sequence[Check], now: datetime) -> None:
    """Replace the verdict of a version that passed and then failed while it was watched; an event says so."""
    qa.record_gate(uow, builder.id, version.number, gate, now)
    details = {"version": version.number, "qa_passed": False}
    _event(uow, builder, "qa.changed", now, reason=gate_failure(gate), details=details)
    uow.builders.save(replace(builder, updated_at=now))


def never_up(uow: UnitOfWork, builder: Builder, version: Version, reason: str, now: datetime) -> None:
    """The version did not come as far as to be asked anything: its QA has failed at the first check."""
    if version.qa_passed is None and not version.settings.skip_qa:
        qa.record_gate(uow, version.builder_id, version.number, gate_of_failure(reason, builder.job_type), now)


def running(uow: UnitOfWork, builder: Builder, version: Version, now: datetime) -> None:
    """The run is up. What a restart after a crash wrote into the reason stays there."""
    builder = taken_over(uow, builder, now)
    deployed(uow, builder, version, now)
    if builder.status is not Status.RUNNING:
        builder = statuses.change(uow, builder, Status.RUNNING, builder.desired_reason, now)
    elif builder.settled_run != builder.run:
        builder = replace(builder, status_reason=builder.desired_reason)
    uow.builders.save(replace(builder, settled_run=builder.run, last_active_at=now, updated_at=now, stop_kind=None))


def deployed(uow: UnitOfWork, builder: Builder, version: Version, now: datetime) -> None:
    """Record that the version was up once."""
    stored = as_stored(uow, version)
    if stored.status not in (VersionStatus.PENDING, VersionStatus.FAILED):
        return
    uow.versions.save(replace(stored, status=VersionStatus.DEPLOYED, status_reason="", failure_code=None))
    _event(uow, builder, "version.deployed", now, reason=deployed_reason(version), details={"version": version.number})


def mark_terminal(
    uow: UnitOfWork, builder: Builder, status: Status, reason: str, now: datetime, *, exit_code: int | None = None
) -> None:
    """Stopped, completed, or a job that failed."""
    changed = statuses.change(uow, builder, status, reason, now)
    uow.builders.save(replace(changed, desired=Desired.STOPPED, settled_run=builder.run, exit_code=exit_code))


def job_over(
    uow: UnitOfWork,
    builder: Builder,
    item: WorkItem,
    status: Status,
    job: Sandbox,
    last_lines: Sequence[str],
    now: datetime,
) -> None:
    """A job has completed or failed: from its end on, nothing is paid. Its exit code is all that its QA judges."""
    assert job.end is not None, "only an ended job is over"
    reason = describe_end(job.end, item.version.settings.resources)
    builder = taken_over(uow, builder, now)
    deployed(uow, builder, item.version, now)
    mark_terminal(uow, builder, status, reason, now, exit_code=job.end.exit_code)
    uow.ledger.close(builder.id, job.end.at or now)
    if not item.version.settings.skip_qa:
        check = check_exit(job.end.exit_code, reason, last_lines)
        qa.record_gate(uow, builder.id, item.version.number, [check], now)


def failed(
    uow: UnitOfWork,
    builder: Builder,
    version: Version,
    prices: Prices,
    *,
    code: str,
    reason: str,
    now: datetime,
    exit_code: int | None = None,
) -> None:
    """A stage failed: the builder is kept in ``failed``, to be looked at and tried again; or its candidate fails."""
    stored = as_stored(uow, version)
    if stored.status is VersionStatus.FAILED:  # it was tried again
        uow.versions.save(replace(stored, status_reason=reason, failure_code=code))
    candidates.fail(uow, builder, stored, code, reason, now)
    if version.number == builder.candidate:
        reject_candidate(uow, builder, prices, now)
        return
    changed = statuses.change(uow, builder, Status.FAILED, reason, now)
    uow.builders.save(
        replace(
            changed,
            desired=Desired.STOPPED,
            settled_run=builder.run,
            failure_code=code,
            exit_code=exit_code,
            handover=None,
        )
    )
    if builder.job_type is JobType.ONE_TIME:
        uow.ledger.close(builder.id, now)


def trial_ended(
    uow: UnitOfWork,
    builder: Builder,
    prices: Prices,
    trial: Sandbox,
    end: SandboxEnd,
    now: datetime,
    *,
    longest: timedelta,
) -> None:
    """Record the end of a trial, and charge the time that it ran, ``longest`` at most."""
    at = end.at or now
    uow.sandboxes.save(replace(trial, end=replace(end, at=at)))
    version = uow.versions.get(builder.id, trial.version)
    if trial.started_at is not None and version is not None:
        resources = version.settings.resources
        ledger.bill_trial(uow, prices, builder, resources, trial.started_at, at, longest=longest)


def handed_over(uow: UnitOfWork, builder: Builder, candidate: Version, now: datetime) -> None:
    """A new run, which is the candidate's; its disk has a name before there is one."""
    uow.builders.save(
        replace(
            builder,
            desired=Desired.RUNNING,
            desired_by=candidate.created_by,
            desired_reason=deployed_reason(candidate),
            run=builder.run + 1,
            handover=Handover.FORWARD,
            candidate_disk=builder.candidate_disk or DiskId(new_id()),
            asleep_since=None,
            updated_at=now,
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
        visibility = Visibility.PUBLIC if builder.opens_with == version else builder.visibility
        builder = replace(builder, version=version, disk=disk, candidate=None, candidate_disk=None, spare_disks=spare)
        builder = replace(builder, visibility=visibility, opens_with=None, exit_code=None, failure_code=None)
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
        reason = f"version {builder.candidate} did not take over: version {builder.version} serves on"
        again = replace(freed, run=builder.run + 1, handover=Handover.AGAIN, desired_by=SYSTEM, desired_reason=reason)
        return replace(again, desired=Desired.RUNNING)
    if builder.job_type is JobType.ONE_TIME:
        uow.ledger.close(builder.id, now)
    if builder.status is Status.RUNNING:  # a job is not done twice
        freed = statuses.change(uow, freed, Status.STOPPED, f"stopped for version {builder.candidate}", now)
    return replace(freed, desired=Desired.STOPPED, settled_run=builder.run)


def deleted(uow: UnitOfWork, builder: Builder, now: datetime) -> None:
    """Record the deletion: billing ends, and the row is kept for the ledger."""
    uow.ledger.close(builder.id, now)
    uow.build_logs.delete(builder.id)
    uow.qa_reports.delete(builder.id)
    uow.acceptances.delete(builder.id)
    uow.leases.delete_of(builder.id)
    changed = statuses.change(uow, builder, Status.DELETED, builder.desired_reason, now)
    uow.builders.save(replace(changed, deleted_at=now))


def _event(
    uow: UnitOfWork, builder: Builder, kind: str, now: datetime, *, reason: str, details: dict[str, Any]
) -> None:
    uow.events.add(Event(builder.tenant_id, builder.id, now, kind, SYSTEM, reason, details))
