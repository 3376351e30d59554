"""Records: what the reconciler writes down, each in one transaction that applies only while its claim holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime

from builderd.application import Application
from builderd.builders import candidates
from builderd.builders.model import Builder, Cause, Desired, Handover, JobType, Status
from builderd.core.errors import StartFailed
from builderd.core.ids import BuilderId
from builderd.core.resources import Resources
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM
from builderd.money import service as spending
from builderd.money.model import Billing, Prices
from builderd.previews.model import Address
from builderd.qa import service as qa
from builderd.qa.model import gate_of_failure
from builderd.reconciler.failures import describe_end
from builderd.reconciler.observe import StoredState, WorkItem, read
from builderd.sandboxes.model import Listening, Sandbox, SandboxEnd, SandboxReport, process_label
from builderd.versions.model import Version, VersionStatus


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
    Not ``durable``: a power cut may lose it, which ends what runs as well, and the step is taken again.
    """

    record: Record | None = None
    afterwards: Callable[[], Awaitable[None]] = nothing
    quiet: bool = False
    durable: bool = True


class ClaimLost(Exception):
    """Raised when another control plane holds the builder: stop working on it."""


async def apply(
    application: Application, builder_id: BuilderId, record: Record, *, durable: bool = True
) -> StoredState | None:
    """Apply the record to the locked builder; return the state stored afterwards. Raises ``ClaimLost``."""

    def guarded(uow: UnitOfWork) -> StoredState | None:
        now = application.clock.now()
        builder = uow.builders.get_held(builder_id, application.instance, now)
        if builder is None:
            raise ClaimLost
        record(Transition(uow, builder, application.prices, now))
        return read(uow, builder_id)

    return await application.store.write(guarded, durable=durable)


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


def stage_finished(
    transition: Transition, stage: str, *, seconds: float, ok: bool, note: str = "", **more: bool
) -> None:
    details = {"stage": stage, "seconds": round(seconds, 3), "ok": ok, **more}
    uow, builder = transition.uow, transition.builder
    candidates.record(uow, builder, "stage.finished", SYSTEM, note or stage, transition.now, **details)


def leads_to(transition: Transition, version: Version, port: int | None, listening: Listening) -> None:
    """Record the port on which the version's app was found, and an event if its preview leads to another one now."""
    uow, builder = transition.uow, transition.builder
    if port is None or port == version.port:
        return
    stored = uow.versions.require(version.builder_id, version.number)
    own = version.settings.port
    uow.versions.save(replace(stored, adopted_port=None if port == own else port))
    # Whichever the engine has seen before it reached the port.
    where = Address(min((ip for ip, found in listening.sockets if found == port), default="0.0.0.0"), port)  # noqa: S104
    reason = f"the app listens on {where}{'' if port == own else f', not on port {own}'}: the preview leads there"
    details = {"version": version.number, "port": port}
    candidates.record(uow, builder, "port.adopted", SYSTEM, reason, transition.now, **details)


def sandbox_started(transition: Transition, version: Version, sandbox: Sandbox, report: SandboxReport) -> Sandbox:
    """Record the start of a sandbox: from then on running time is billed. ``version`` is the one that runs."""
    uow, builder = transition.uow, transition.builder
    at = report.started_at or sandbox.created_at
    started = replace(sandbox, ip=report.ip, started_at=at)
    uow.sandboxes.save(started)
    _bill(transition, version.settings.resources, version.settings.resources, at)
    for credential in version.settings.credentials:
        uow.credentials.touch(builder.tenant_id, credential, at, builder.id)
    details = {"sandbox": sandbox.id, "version": sandbox.version, "attempt": sandbox.attempt, **_process_of(sandbox)}
    candidates.record(
        uow, builder, "sandbox.started", SYSTEM, f"{process_label(sandbox)} started".strip(), at, **details
    )
    return started


def _bill(transition: Transition, running: Resources, resting: Resources, at: datetime) -> None:
    """Bill each of the builder's sandboxes that run, with the resources of their version; without one, the disk."""
    uow, builder = transition.uow, transition.builder
    number = sum(one.started_at is not None for one in uow.sandboxes.all_open(builder.id))
    resources = running.times(number) if number else resting
    billing = Billing.RUNNING if number else Billing.STOPPED
    spending.bill(uow, transition.prices, builder, resources, billing, at)


def _process_of(sandbox: Sandbox) -> dict[str, str]:
    """Return the detail of an event that names the further process."""
    return {"process": process_label(sandbox)} if sandbox.process else {}


def sandbox_ended(transition: Transition, sandbox: Sandbox, *, end: SandboxEnd, report: SandboxReport | None) -> None:
    """Record the end of a sandbox: from then on what still runs is billed, or the disk of the version to run next.

    A sandbox whose start the engine reports, but the record lacks since the service died in between, is billed for its
    time all the same.
    """
    uow, builder, now = transition.uow, transition.builder, transition.now
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
    _bill(transition, ran.settings.resources, following.settings.resources, at)
    reason = f"{process_label(sandbox)} {describe_end(end, ran.settings.resources)}".strip()
    details = {
        "sandbox": sandbox.id,
        "version": sandbox.version,
        "exit_code": end.exit_code,
        "cause": end.cause.value,
        **_process_of(sandbox),
    }
    candidates.record(uow, builder, "sandbox.ended", SYSTEM, reason, at, **details)


def never_up(transition: Transition, version: Version, reason: str) -> None:
    """The version did not come as far as to be asked anything: its QA has failed at the first check."""
    if version.qa_passed is None and not version.settings.skip_qa:
        gate = gate_of_failure(reason, transition.builder.job_type)
        qa.record_gate(transition.uow, version.builder_id, version.number, gate, transition.now)


def stage_failed(
    app: Application,
    item: WorkItem,
    stage: str,
    code: str,
    reason: str,
    *,
    since: datetime | None = None,
    exit_code: int | None = None,
) -> Result:
    """Return the record of a stage that failed and, with it, of its version. ``since``: when the stage began."""
    seconds = (app.clock.now() - since).total_seconds() if since else 0.0

    def record(transition: Transition) -> None:
        if not still_wanted(transition.builder, item.builder, item.version):
            return
        stage_finished(transition, stage, seconds=seconds, ok=False, note=reason)
        failed(transition, item.version, code=code, reason=reason, exit_code=exit_code)
        if stage == "start" and code == StartFailed.code and item.builder.job_type.stays_up:
            never_up(transition, item.version, reason)

    return Result(record)


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


def deployed_reason(version: Version) -> str:
    """Return in words the cause of the version's deployment."""
    what = f"rolled back to version {version.rolled_back_to}" if version.rolled_back_to else "deployed"
    return f"version {version.number} {what} by {version.created_by}"


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
