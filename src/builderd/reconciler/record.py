"""Records: what the reconciler writes down, each in one transaction that applies only while its claim holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from builderd.application import Application
from builderd.builders import candidates
from builderd.builders.model import (
    MAX_EXITS,
    Builder,
    Cause,
    Desired,
    Handover,
    JobType,
    Status,
    Visibility,
    recent_crashes,
)
from builderd.core.errors import QaFailed
from builderd.core.ids import BuilderId, DiskId, new_id
from builderd.database.unit_of_work import UnitOfWork
from builderd.dependencies.model import MadeLayer
from builderd.events.model import SYSTEM, Event
from builderd.money import service as spending
from builderd.money.model import Billing, Prices
from builderd.qa import service as qa
from builderd.qa.model import Check, check_exit, gate_failure, gate_of_failure, gate_passed
from builderd.reconciler.failures import describe_end, restart_note
from builderd.reconciler.observe import StoredState, WorkItem, read
from builderd.review import verdicts
from builderd.review.model import Report, ReviewFailed, summary
from builderd.sandboxes.model import LogLine, LogStream, Sandbox, SandboxEnd, SandboxReport
from builderd.versions import service as deployments
from builderd.versions.model import NO_LAYER, Version, VersionStatus

REUSED = "The requirements are as they were before: their layer is reused."
BUILT_BEFORE = "The same files were built before: that result is used again."


@dataclass(frozen=True, slots=True)
class Transition:
    """Context of a record: its unit of work, the builder as it is there, the prices, and the time."""

    uow: UnitOfWork
    builder: Builder
    prices: Prices
    now: datetime


#: Writes what a step did, inside a transaction, on the builder as it is then.
Record = Callable[[Transition], None]


async def nothing() -> None:
    """Do nothing: the default of ``Result.afterwards``."""


@dataclass(frozen=True, slots=True)
class Result:
    """Result of a step: ``record`` is written in one transaction, then ``afterwards`` tidies up.

    A crash may leave ``afterwards`` to the next start. ``quiet``: calls that wait for the builder are not woken.
    """

    record: Record | None = None
    afterwards: Callable[[], Awaitable[None]] = nothing
    quiet: bool = False


class ClaimLost(Exception):
    """Raised when another control plane holds the builder: stop working on it."""


async def apply(application: Application, builder_id: BuilderId, record: Record) -> StoredState | None:
    """Apply the record to the locked builder; return the state stored afterwards. Raises ``ClaimLost``."""

    def guarded(uow: UnitOfWork) -> StoredState | None:
        now = application.clock.now()
        builder = uow.builders.get_held(builder_id, application.instance, now)
        if builder is None:
            raise ClaimLost
        record(Transition(uow, builder, application.prices, now))
        return read(uow, builder_id)

    return await application.store.write(guarded)


def same_generation(builder: Builder, looked_at: Builder) -> bool:
    """Return whether the desired state and run are those the step was chosen for; if not, discard its outcome."""
    return builder.desired is looked_at.desired and builder.generation == looked_at.generation


def same_candidate(builder: Builder, looked_at: Builder) -> bool:
    """Return whether the candidate and the handover are unchanged since the step was chosen."""
    return builder.candidate_version == looked_at.candidate_version and builder.handover is looked_at.handover


def still_wanted(builder: Builder, looked_at: Builder, version: Version) -> bool:
    """Return whether a step's outcome for this version, the one to run or the candidate, still applies."""
    if version.number == looked_at.to_run[0]:
        return same_generation(builder, looked_at)
    return same_candidate(builder, looked_at)


def installed(transition: Transition, version: Version, layer: MadeLayer) -> None:
    """The version's layer is there. The build log says so also where nothing had to be built."""
    uow, now = transition.uow, transition.now
    uow.versions.save(replace(uow.versions.require(version.builder_id, version.number), layer_key=layer.key))
    note = "reused" if layer.reused else "made"
    if layer.key == NO_LAYER:
        note = "nothing to install"
    elif layer.reused:
        uow.build_logs.add(version.builder_id, version.number, [LogLine(now, LogStream.BUILD, REUSED)])
    stage_finished(transition, "install", seconds=layer.seconds, ok=True, note=note, reused=layer.reused)


def built(transition: Transition, version: Version, build: MadeLayer) -> None:
    """The version's files are built. The build log says so also where that was done before."""
    uow = transition.uow
    uow.versions.save(replace(uow.versions.require(version.builder_id, version.number), build_key=build.key))
    if build.reused:
        line = LogLine(transition.now, LogStream.BUILD, BUILT_BEFORE)
        uow.build_logs.add(version.builder_id, version.number, [line])
    note = "reused" if build.reused else "made"
    stage_finished(transition, "build", seconds=build.seconds, ok=True, note=note, reused=build.reused)


def stage_finished(
    transition: Transition, stage: str, *, seconds: float, ok: bool, note: str = "", **more: bool
) -> None:
    details = {"stage": stage, "seconds": round(seconds, 3), "ok": ok, **more}
    uow, builder = transition.uow, transition.builder
    candidates.record(uow, builder, "stage.finished", SYSTEM, note or stage, transition.now, **details)


def disk_lost(transition: Transition, item: WorkItem, *, is_own: bool) -> None:
    """Record that the disk to run on is gone, before another one is made: a crash in between loses nothing.

    ``is_own``: the builder's own is gone, not only a candidate's copy of it.
    """
    uow, builder = transition.uow, transition.builder
    if is_own and builder.disk_is_made and deployments.has_data(uow, builder):
        reason = "its disk is gone, and there is no backup of it: it begins anew with the files of its version"
        candidates.record(uow, builder, "disk.lost", SYSTEM, reason, transition.now, disk=builder.disk)
    version = uow.versions.require(item.version.builder_id, item.version.number)
    if version.released:
        # The release prepared the disk that is gone.
        uow.versions.save(replace(version, released=False))
    if is_own:
        uow.builders.save(replace(builder, disk_is_made=False))


def disk_made(transition: Transition, item: WorkItem) -> None:
    """Record the builder's disk, which is billed from now on."""
    uow, builder = transition.uow, transition.builder
    if not builder.disk_is_made:
        uow.builders.save(replace(builder, disk_is_made=True))
    if uow.ledger.current(builder.id) is None:
        resources = item.version.settings.resources
        spending.bill(uow, transition.prices, builder, resources, Billing.STOPPED, transition.now)


def disk_moved(transition: Transition, member: str) -> None:
    """Record that the builder's disk lies on this member of the cluster, if it was another one."""
    uow, builder = transition.uow, transition.builder
    if builder.location and builder.location != member:
        reason = f"moved from the member {builder.location} of the cluster, which is being evacuated"
        candidates.record(uow, builder, "member.moved", SYSTEM, reason, transition.now, member=builder.location)
    uow.builders.save(replace(builder, location=member))


def sandbox_started(transition: Transition, version: Version, sandbox: Sandbox, report: SandboxReport) -> Sandbox:
    """Record the start of a sandbox: from then on running time is billed. ``version`` is the one that runs."""
    uow, builder, prices = transition.uow, transition.builder, transition.prices
    at = report.started_at or sandbox.created_at
    started = replace(sandbox, ip=report.ip, started_at=at)
    uow.sandboxes.save(started)
    spending.bill(uow, prices, builder, version.settings.resources, Billing.RUNNING, at)
    for credential in version.settings.credentials:
        uow.credentials.touch(builder.tenant_id, credential, at, builder.id)
    details = {"sandbox": sandbox.id, "version": sandbox.version, "attempt": sandbox.attempt}
    candidates.record(uow, builder, "sandbox.started", SYSTEM, "started", at, **details)
    return started


def sandbox_ended(transition: Transition, sandbox: Sandbox, *, end: SandboxEnd, report: SandboxReport | None) -> None:
    """Record the end of a sandbox: from then on only the disk is billed, that of the version to run next.

    A sandbox whose start the engine reports, but the record lacks since the service died in between, is billed for its
    time all the same.
    """
    uow, builder, prices, now = transition.uow, transition.builder, transition.prices, transition.now
    ran = uow.versions.get(builder.id, sandbox.version)
    following = ran if builder.to_run[0] == sandbox.version else uow.versions.get(builder.id, builder.to_run[0])
    assert ran is not None, "a builder's versions are always stored"
    assert following is not None, "a builder's versions are always stored"
    if sandbox.started_at is None and report is not None and report.started_at is not None:
        sandbox = sandbox_started(transition, ran, sandbox, report)
    at = end.at or now
    uow.sandboxes.save(replace(sandbox, end=replace(end, at=at)))
    if sandbox.started_at is None:
        return
    spending.bill(uow, prices, builder, following.settings.resources, Billing.STOPPED, at)
    reason = describe_end(end, ran.settings.resources)
    details = {
        "sandbox": sandbox.id,
        "version": sandbox.version,
        "exit_code": end.exit_code,
        "cause": end.cause.value,
    }
    candidates.record(uow, builder, "sandbox.ended", SYSTEM, reason, at, **details)


def discard_first_disk(transition: Transition, sandbox: Sandbox) -> None:
    """Give a builder that never was up another disk after a release that did not succeed on its first one.

    Other releases run on a copy, which goes with the candidate, or on the disk of a builder that was up, which stays.
    """
    uow, now = transition.uow, transition.now
    builder = uow.builders.get(transition.builder.id)
    if builder is None or sandbox.disk != builder.disk or deployments.has_data(uow, builder):
        return
    uow.ledger.close(builder.id, now)
    spare = (*builder.spare_disks, builder.disk)
    uow.builders.save(replace(builder, disk=DiskId(new_id()), disk_is_made=False, spare_disks=spare))


def caught_up(transition: Transition, sandbox: Sandbox, report: SandboxReport | None) -> None:
    """Record a freeze and a thaw that the engine made just before the service was killed: at most one of each.

    ``report`` was read before the changes that are recorded next.
    """
    if report is None or report.frozen_at is None:
        return
    builder = replace(transition.builder, cause=Cause(SYSTEM, "recorded after an interruption"))
    by = replace(transition, builder=builder)
    # The sandbox's state decides which came last when both have the same time.
    stands = report.sleeps
    paid = transition.uow.ledger.current(builder.id)
    if paid is not None and paid.billing is Billing.RUNNING and (stands or report.frozen_at > paid.start):
        frozen(by, sandbox, report.frozen_at)
    if not stands and report.thawed_at is not None and report.thawed_at >= report.frozen_at:
        thawed(by, sandbox, report.thawed_at)


def frozen(transition: Transition, sandbox: Sandbox, at: datetime) -> None:
    """Record a freeze: from then on only memory and disk are billed."""
    _turn(transition, sandbox, "sandbox.frozen", Billing.RUNNING, Billing.FROZEN, at)


def thawed(transition: Transition, sandbox: Sandbox, at: datetime) -> None:
    """Record a thaw: from then on running time is billed again."""
    _turn(transition, sandbox, "sandbox.thawed", Billing.FROZEN, Billing.RUNNING, at)


def _turn(transition: Transition, sandbox: Sandbox, kind: str, before: Billing, after: Billing, at: datetime) -> None:
    """Record the event only if the ledger changed too: a repeated step records none."""
    uow, builder = transition.uow, transition.builder
    if spending.turn(uow, transition.prices, builder, before, after, at):
        by, details = builder.cause, {"sandbox": sandbox.id, "version": sandbox.version}
        uow.events.add(Event(builder.tenant_id, builder.id, at, kind, by.actor, by.reason, details))


def abort_freeze(transition: Transition) -> None:
    """Abort going to sleep: a visitor arrived meanwhile, and the builder keeps running."""
    builder = transition.builder
    transition.uow.builders.save(
        replace(
            builder,
            desired=Desired.RUNNING,
            cause=replace(builder.cause, reason="visited"),
            asleep_since=None,
            stop_kind=None,
            last_active_at=transition.now,
        )
    )


def crash_noted(transition: Transition, item: WorkItem, sandbox: Sandbox) -> None:
    """An app that was up and is being brought back says so in its reason and in an event; its status stays."""
    uow, builder, now = transition.uow, transition.builder, transition.now
    is_up = builder.desired is Desired.RUNNING and builder.status is Status.RUNNING
    if not is_up or builder.job_type is JobType.ONE_TIME or sandbox.end is None:
        return
    exits = len(recent_crashes(uow.sandboxes.of_generation(builder.id, builder.generation), now))
    if exits >= MAX_EXITS:
        return  # it is given up
    note = restart_note(sandbox.end, item.version.settings.resources, exits, MAX_EXITS)
    details = {"sandbox": sandbox.id, "version": sandbox.version, "cause": sandbox.end.cause.value}
    candidates.record(uow, builder, "builder.restarting", SYSTEM, note, now, **details)
    uow.builders.save(replace(builder, status_reason=note, updated_at=now))


def trial_ended(transition: Transition, trial: Sandbox, end: SandboxEnd, *, longest: timedelta) -> None:
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
    candidates.record(uow, builder, "qa.changed", SYSTEM, gate_failure(gate), now, **details)
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
        builder = candidates.change(uow, builder, Status.RUNNING, builder.cause.reason, now)
    elif builder.observed_generation != builder.generation:
        builder = replace(builder, status_reason=builder.cause.reason)
    uow.builders.save(
        replace(builder, observed_generation=builder.generation, last_active_at=now, updated_at=now, stop_kind=None)
    )


def deployed(transition: Transition, version: Version) -> None:
    """Record that the version was up once."""
    uow = transition.uow
    stored = uow.versions.require(version.builder_id, version.number)
    if stored.status not in (VersionStatus.PENDING, VersionStatus.FAILED):
        return
    up = replace(stored, status=VersionStatus.DEPLOYED, status_reason="", failure_code=None)
    uow.versions.save(up)
    reason, now = deployed_reason(version), transition.now
    candidates.record(uow, transition.builder, "version.deployed", SYSTEM, reason, now, version=version.number)


def mark_terminal(
    uow: UnitOfWork, builder: Builder, status: Status, reason: str, now: datetime, *, exit_code: int | None = None
) -> None:
    """Stopped, completed, or a job that failed."""
    changed = candidates.change(uow, builder, status, reason, now)
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
    stored = uow.versions.require(version.builder_id, version.number)
    if stored.status is VersionStatus.FAILED:  # it was tried again
        uow.versions.save(replace(stored, status_reason=reason, failure_code=code))
    candidates.fail(uow, builder, stored, code, reason, now)
    if version.number == builder.candidate_version:
        reject_candidate(uow, builder, prices, now)
        return
    changed = candidates.change(uow, builder, Status.FAILED, reason, now)
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

    Before the take-over the previous version still serves; after it, it is started again on its own disk.
    """
    freed = replace(candidates.remove_candidate(uow, builder, prices, now), updated_at=now)
    if builder.handover is not Handover.FORWARD:
        uow.builders.save(freed)
        return
    if builder.status is Status.RUNNING and builder.job_type.stays_up:
        reason = f"version {builder.candidate_version} did not take over: version {builder.version} serves on"
        again = replace(freed, generation=builder.generation + 1, handover=Handover.AGAIN, cause=Cause(SYSTEM, reason))
        uow.builders.save(replace(again, desired=Desired.RUNNING))
        return
    if builder.job_type is JobType.ONE_TIME:
        uow.ledger.close(builder.id, now)
    if builder.status is Status.RUNNING:  # a job is not done twice
        freed = candidates.change(uow, freed, Status.STOPPED, f"stopped for version {builder.candidate_version}", now)
    uow.builders.save(replace(freed, desired=Desired.STOPPED, observed_generation=builder.generation))


def deleted(transition: Transition) -> None:
    """Record the deletion: billing ends, and the row is kept for the ledger."""
    uow, builder, now = transition.uow, transition.builder, transition.now
    uow.ledger.close(builder.id, now)
    uow.build_logs.delete(builder.id)
    uow.qa_reports.delete(builder.id)
    uow.acceptances.delete(builder.id)
    uow.leases.delete_of(builder.id)
    changed = candidates.change(uow, builder, Status.DELETED, builder.cause.reason, now)
    uow.builders.save(replace(changed, deleted_at=now))
