"""The decision of the reconciler: one step that brings a builder nearer to its desired state.

``next_step`` is pure: it compares the desired state with an observation and names one idempotent step. A step that is
repeated after a crash does no harm.
"""

from __future__ import annotations

from builderd.domain.builders import (
    MAX_EXITS,
    Builder,
    Desired,
    Handover,
    JobType,
    Status,
    delay_before_restart,
    end_time,
    is_crash,
    next_attempt,
    recent_crashes,
)
from builderd.domain.previews import Address, RouteState, closed_route, make_route
from builderd.domain.sandboxes import EndCause, Sandbox
from builderd.domain.steps import (
    AwaitListening,
    AwaitRelease,
    BuildApp,
    CheckApp,
    CreateDisk,
    EndTrial,
    Forget,
    Freeze,
    GiveUp,
    Install,
    MoveDisk,
    Observation,
    PlanSandbox,
    PutBundle,
    RecordEnd,
    RecordLoss,
    RecoverDisk,
    RemoveRoute,
    Review,
    SetRoute,
    Settle,
    StartSandbox,
    Step,
    StopSandbox,
    Thaw,
    VersionState,
    Wait,
)


def next_step(builder: Builder, seen: Observation) -> Step:
    """Return the next step from the observed towards the desired state."""
    if _ended_by_itself(seen):
        return _close_route(builder, seen) or RecordEnd()
    match builder.desired:
        case Desired.DELETED:
            return _towards_deleted(builder, seen)
        case Desired.STOPPED:
            return _towards_stopped(builder, seen)
        case Desired.RUNNING:
            return _towards_running(builder, seen)


def _ended_by_itself(seen: Observation) -> bool:
    """Return True if a sandbox recorded as started no longer runs."""
    if seen.sandbox is None or seen.sandbox.started_at is None:
        return False
    return seen.report is None or not seen.report.alive


def _close_route(builder: Builder, seen: Observation) -> Step | None:
    """Close the route to the sandbox; None if it is closed already.

    The route closes before the sandbox is removed, since another builder's sandbox may get its address.
    """
    if builder.desired is Desired.DELETED:
        return RemoveRoute() if seen.route is not None else None
    closed = closed_route(builder)
    return SetRoute(closed) if seen.route != closed else None


def _towards_deleted(builder: Builder, seen: Observation) -> Step:
    if builder.settled:
        return Wait()
    if (closing := _close_route(builder, seen)) is not None:
        return closing
    if seen.trial is not None:
        return EndTrial()
    return StopSandbox() if seen.sandbox is not None else Forget()


def _towards_stopped(builder: Builder, seen: Observation) -> Step:
    if (closing := _close_route(builder, seen)) is not None:
        return closing
    if seen.sandbox is not None:
        return StopSandbox()
    return Wait() if builder.settled else Settle(Status.STOPPED)


def _towards_running(builder: Builder, seen: Observation) -> Step:
    if seen.sandbox is not None and seen.sandbox.generation != builder.generation:
        return _close_route(builder, seen) or StopSandbox(drain=builder.handover is not None)
    if seen.sandbox is None or seen.sandbox.started_at is None:
        return _towards_started(builder, seen)
    if (waiting := _awaited(builder, seen.sandbox)) is not None:
        return waiting
    if builder.job_type.has_preview:
        if builder.asleep_since is not None and _is_up(builder):
            return _towards_frozen(builder, seen)
        if seen.paid_frozen or _is_frozen(seen):
            return Thaw()
        if builder.handover is Handover.FORWARD and seen.version.qa_due and seen.version.qa_required:
            return CheckApp()  # before the route opens: requests never reach a version that fails
        if (opening := _open_route(builder, seen)) is not None:
            return opening
    if builder.job_type.stays_up and seen.version.qa_due and not builder.settled:
        return CheckApp()
    return Wait() if _is_up(builder) else Settle(Status.RUNNING)


def _awaited(builder: Builder, started: Sandbox) -> Step | None:
    """Return the step that waits for the started sandbox; None if nothing is to be waited for."""
    if started.release:
        return AwaitRelease()
    return AwaitListening() if builder.job_type.stays_up and started.listening_at is None else None


def _is_up(builder: Builder) -> bool:
    """Return True if it is recorded as running."""
    return builder.settled and builder.status is Status.RUNNING and builder.stop_kind is None


def _towards_frozen(builder: Builder, seen: Observation) -> Step:
    """Close the route before the freeze, so that no request hangs in a frozen app."""
    asleep = make_route(builder, RouteState.ASLEEP)
    if seen.route != asleep:
        return SetRoute(asleep)
    return Wait() if seen.paid_frozen and _is_frozen(seen) else Freeze()


def _is_frozen(seen: Observation) -> bool:
    return seen.report is not None and seen.report.sleeps


def _open_route(builder: Builder, seen: Observation) -> Step | None:
    """Open the route to the app; None if it is open already."""
    assert seen.report is not None, "a running sandbox has a report"
    assert seen.report.ip is not None, "a running sandbox has an address"
    destination = Address(seen.report.ip, seen.version.port)
    opened = make_route(builder, RouteState.OPEN, destination, h2c=seen.version.h2c)
    return SetRoute(opened) if seen.route != opened else None


def _towards_started(builder: Builder, seen: Observation) -> Step:
    if seen.sandbox is None and (decision := _after_ends(builder, seen)) is not None:
        return decision
    if (closing := _close_route(builder, seen)) is not None:
        return closing
    if (preparing := prepare(seen.version)) is not None:
        return preparing
    if (making := _disk(seen)) is not None:
        return making
    if seen.disk_bundle != seen.version.bundle_hash or seen.disk_build != seen.version.build_key:
        return PutBundle()
    if seen.sandbox is None:
        return PlanSandbox(attempt=next_attempt(seen.ends), release=seen.version.release_due)
    if seen.sandbox.disk != builder.to_run[1] or (seen.version.release_due and not seen.sandbox.release):
        return StopSandbox()  # planned before its disk, or the one that its release had prepared, was lost
    return StartSandbox()


def _disk(seen: Observation) -> Step | None:
    """Return the step that brings the disk back, makes or moves it; None once an app may start on it."""
    if seen.recovering:
        return Wait()
    if seen.lost:
        return RecoverDisk()
    if seen.loss_due:
        return RecordLoss()
    if not seen.disk_ready:
        return CreateDisk()
    return MoveDisk() if seen.disk_leaving else None


def prepare(version: VersionState) -> Step | None:
    """Return the review, installation or build that a version needs before its start, or None."""
    if version.review_due:
        return Review(version.number)
    if version.build_ready and version.layer_ready:
        return None
    return BuildApp(version.number) if version.layer_ready else Install(version.number)


def _after_ends(builder: Builder, seen: Observation) -> Step | None:
    """Return the step that the ends of earlier attempts require before a new one, or None."""
    if not seen.ends:
        return None
    last = seen.ends[-1]
    if builder.job_type is JobType.ONE_TIME:
        return _job_outcome(last)
    if not any(end.listening_at for end in seen.ends) and any(is_crash(end) for end in seen.ends):
        return GiveUp(too_often=False)
    if len(recent_crashes(seen.ends, seen.now)) >= MAX_EXITS:
        return GiveUp(too_often=True)
    due = end_time(last) + delay_before_restart(seen.ends, seen.now)
    return Wait(due) if due > seen.now else None


def _job_outcome(last: Sandbox) -> Step | None:
    """Return the outcome of a job; None to run it again after an external stop."""
    assert last.end is not None
    if last.end.cause in (EndCause.HOST_RESTARTED, EndCause.STOPPED):
        return None
    return Settle(Status.COMPLETED if last.end.exit_code == 0 else Status.FAILED)
