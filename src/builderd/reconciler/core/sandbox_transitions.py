"""Transitions of sandboxes: started, frozen, thawed, ended, with what is billed from then on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from builderd.domain.builders import MAX_EXITS, Cause, Desired, JobType, Status, recent_crashes
from builderd.domain.events import SYSTEM, Event
from builderd.domain.failures import describe_end, restart_note
from builderd.domain.ids import DiskId, new_id
from builderd.domain.prices import Billing
from builderd.domain.sandboxes import Sandbox, SandboxEnd, SandboxReport
from builderd.domain.versions import Version
from builderd.reconciler.core.observe import WorkItem
from builderd.reconciler.core.transitions import Transition, add_event, as_stored
from builderd.services import credentials, failed_disks, ledger


def disk_lost(transition: Transition, item: WorkItem, *, is_own: bool) -> None:
    """Record that the disk to run on is gone, before another one is made: a crash in between loses nothing.

    ``is_own``: the builder's own is gone, not only a candidate's copy of it.
    """
    uow, builder = transition.uow, transition.builder
    if is_own and builder.disk_is_made and failed_disks.holds_data(uow, builder):
        reason = "its disk is gone, and there is no backup of it: it begins anew with the files of its version"
        add_event(transition, "disk.lost", reason=reason, details={"disk": builder.disk})
    version = as_stored(uow, item.version)
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
        ledger.bill(uow, transition.prices, builder, resources, Billing.STOPPED, transition.now)


def disk_moved(transition: Transition, member: str) -> None:
    """Record that the builder's disk lies on this member of the cluster, if it was another one."""
    builder = transition.builder
    if builder.location and builder.location != member:
        reason = f"moved from the member {builder.location} of the cluster, which is being evacuated"
        add_event(transition, "member.moved", reason=reason, details={"member": builder.location})
    transition.uow.builders.save(replace(builder, location=member))


def sandbox_started(transition: Transition, version: Version, sandbox: Sandbox, report: SandboxReport) -> Sandbox:
    """Record the start of a sandbox: from then on running time is billed. ``version`` is the one that runs."""
    uow, builder, prices = transition.uow, transition.builder, transition.prices
    at = report.started_at or sandbox.created_at
    started = replace(sandbox, ip=report.ip, started_at=at)
    uow.sandboxes.save(started)
    ledger.bill(uow, prices, builder, version.settings.resources, Billing.RUNNING, at)
    credentials.used(uow, builder.tenant_id, version.settings.credentials, builder.id, at)
    details = {"sandbox": sandbox.id, "version": sandbox.version, "attempt": sandbox.attempt}
    add_event(transition, "sandbox.started", reason="started", details=details, at=at)
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
    ledger.bill(uow, prices, builder, following.settings.resources, Billing.STOPPED, at)
    reason = describe_end(end, ran.settings.resources)
    details = {
        "sandbox": sandbox.id,
        "version": sandbox.version,
        "exit_code": end.exit_code,
        "cause": end.cause.value,
    }
    add_event(transition, "sandbox.ended", reason=reason, details=details, at=at)


def discard_first_disk(transition: Transition, sandbox: Sandbox) -> None:
    """Give a builder that never was up another disk after a release that did not succeed on its first one.

    Other releases run on a copy, which goes with the candidate, or on the disk of a builder that was up, which stays.
    """
    uow, now = transition.uow, transition.now
    builder = uow.builders.get(transition.builder.id)
    if builder is None or sandbox.disk != builder.disk or failed_disks.holds_data(uow, builder):
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
    _record_billing(transition, sandbox, "sandbox.frozen", ledger.freeze, at)


def thawed(transition: Transition, sandbox: Sandbox, at: datetime) -> None:
    """Record a thaw: from then on running time is billed again."""
    _record_billing(transition, sandbox, "sandbox.thawed", ledger.thaw, at)


def _record_billing(
    transition: Transition, sandbox: Sandbox, kind: str, change_billing: Callable[..., None], at: datetime
) -> None:
    """Record the event only if the ledger changed too: a repeated step records none."""
    uow, builder = transition.uow, transition.builder
    before = uow.ledger.current(builder.id)
    change_billing(uow, transition.prices, builder, at)
    if uow.ledger.current(builder.id) != before:
        details = {"sandbox": sandbox.id, "version": sandbox.version}
        uow.events.add(
            Event(builder.tenant_id, builder.id, at, kind, builder.cause.actor, builder.cause.reason, details)
        )


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
    add_event(transition, "builder.restarting", reason=note, details=details)
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
        ledger.bill_trial(uow, prices, builder, resources, trial.started_at, end_billed)
