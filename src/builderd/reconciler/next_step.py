"""Steps of the reconciler, each idempotent, and the decision which one brings a builder nearer to its desired state.

``next_step`` is pure: it compares the desired state with an observation and names one step. A step that is repeated
after a crash does no harm. ``candidate_step`` prepares a new version while the current one serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from builderd.builders.model import (
    MAX_EXITS,
    Builder,
    Desired,
    Handover,
    JobType,
    Status,
    delay_before_restart,
    end_time,
    is_crash,
    is_given_up,
    next_attempt,
    recent_crashes,
)
from builderd.previews.model import Address, Route, RouteState, closed_route, make_route
from builderd.sandboxes.model import EndCause, Sandbox, SandboxReport


def next_step(builder: Builder, seen: Observation) -> Step:
    """Return the next step from the observed towards the desired state."""
    started = seen.sandbox is not None and seen.sandbox.started_at is not None
    if started and (seen.report is None or not seen.report.alive):  # it ended by itself
        return _close_route(builder, seen) or Action.RECORD_END
    if (ended := next((found for one in seen.processes if (found := one.ended)), None)) is not None:
        return RecordProcessEnd(ended)
    if builder.desired is Desired.RUNNING:
        return _towards_running(builder, seen)
    if builder.desired is Desired.DELETED and builder.settled:
        return Wait()
    if (stopping := _stop_processes(seen)) is not None:
        return stopping
    if (closing := _close_route(builder, seen)) is not None:
        return closing
    if builder.desired is Desired.DELETED and seen.trial is not None:
        return Action.END_TRIAL
    if seen.sandbox is not None:
        return StopSandbox()
    if builder.desired is Desired.DELETED:
        return Action.FORGET
    return Wait() if builder.settled else Settle(Status.STOPPED)


def _close_route(builder: Builder, seen: Observation) -> Step | None:
    """Close the route to the sandbox; None if it is closed already.

    The route closes before the sandbox is removed, since another builder's sandbox may get its address.
    """
    if builder.desired is Desired.DELETED:
        return Action.REMOVE_ROUTE if seen.route is not None else None
    closed = closed_route(builder)
    return SetRoute(closed) if seen.route != closed else None


def _stop_processes(seen: Observation, generation: int | None = None) -> Step | None:
    """Stop further processes together: those of another ``generation`` (None: all), to be restarted or not wanted.

    They stop while visitors still reach the app, so that two workers never work at once, nor on a disk that is copied.
    """
    found = [
        one.sandbox
        for one in seen.processes
        if one.sandbox is not None
        and (generation is None or one.sandbox.generation != generation or one.sandbox.replaced or not one.wanted)
    ]
    return StopProcesses(tuple(found)) if found else None


def _towards_running(builder: Builder, seen: Observation) -> Step:
    if (stopping := _stop_processes(seen, builder.generation)) is not None:
        return stopping
    if seen.sandbox is not None and (seen.sandbox.generation != builder.generation or seen.sandbox.replaced):
        return _close_route(builder, seen) or StopSandbox(drain=builder.handover is not None)
    if seen.sandbox is None or seen.sandbox.started_at is None:
        return _towards_started(builder, seen)
    if seen.sandbox.release:
        return Action.AWAIT_RELEASE
    return _towards_up(builder, seen)


def _towards_up(builder: Builder, seen: Observation) -> Step:
    """Return the next step of an app whose own sandbox was started."""
    assert seen.sandbox is not None, "the caller checked it"
    further = _towards_processes(builder, seen)
    if further is not None and not isinstance(further, Wait):
        return further
    if builder.job_type.stays_up and seen.sandbox.listening_at is None:
        return Action.AWAIT_LISTENING
    is_judged = _is_judged(builder, seen)
    if is_judged and (young := next((found for one in seen.processes if (found := one.young)), None)) is not None:
        return AwaitProcess(young)
    is_up = builder.settled and builder.status is Status.RUNNING and builder.stop_kind is None
    if builder.job_type.has_preview and (step := _towards_visited(builder, seen, is_up=is_up)) is not None:
        return step
    if builder.job_type.stays_up and seen.version.qa_due and not builder.settled:
        return Action.CHECK_APP
    if not is_up:
        return Settle(Status.RUNNING)
    return further or Wait()


def _towards_processes(builder: Builder, seen: Observation) -> Step | None:
    """Return the step that starts or gives up a further process, the wait for its restart, or None.

    One that crashes before its version was ever up fails that version. Later it is restarted, or given up, by itself.
    """
    due: list[datetime] = []
    for one in seen.processes:
        if not one.wanted or (one.sandbox is not None and one.sandbox.started_at is not None):
            continue
        if one.sandbox is not None:
            return StartProcess(one.sandbox)
        if _is_judged(builder, seen) and one.ends and is_crash(one.ends[-1]):
            return GiveUp(too_often=False, process=one)
        if is_given_up(one.ends):
            continue
        at = end_time(one.ends[-1]) + delay_before_restart(one.ends, seen.now) if one.ends else seen.now
        if at <= seen.now:
            return PlanSandbox(next_attempt(one.ends), process=one.name, number=one.number)
        due.append(at)
    return Wait(min(due)) if due else None


def _towards_visited(builder: Builder, seen: Observation, *, is_up: bool) -> Step | None:
    """Return the step that freezes or thaws the app, or opens the route to it; None once visitors reach it."""
    assert seen.report is not None, "a running sandbox has a report"
    if builder.asleep_since is not None and is_up:
        # The route closes before the freeze, so that no request hangs in a frozen app.
        asleep = make_route(builder, RouteState.ASLEEP)
        if seen.route != asleep:
            return SetRoute(asleep)
        return Wait() if seen.paid_frozen and seen.report.sleeps else Action.FREEZE
    if seen.paid_frozen or seen.report.sleeps:
        return Action.THAW
    if builder.handover is Handover.FORWARD and seen.version.qa_due and seen.version.qa_required:
        return Action.CHECK_APP  # before the route opens: requests never reach a version that fails
    assert seen.report.ip is not None, "a running sandbox has an address"
    opened = make_route(builder, RouteState.OPEN, Address(seen.report.ip, seen.version.port), h2c=seen.version.h2c)
    return SetRoute(opened) if seen.route != opened else None


def _towards_started(builder: Builder, seen: Observation) -> Step:
    if seen.sandbox is None and (decision := _after_ends(builder, seen)) is not None:
        return decision
    if (closing := _close_route(builder, seen)) is not None:
        return closing
    if (preparing := prepare(seen.version)) is not None:
        return preparing
    making = _disk(seen)
    if making is None and (seen.disk_bundle, seen.disk_build) != (seen.version.bundle_hash, seen.version.build_key):
        making = Action.PUT_BUNDLE
    if making is not None:
        return _stop_processes(seen) or making
    if seen.sandbox is None:
        return PlanSandbox(attempt=next_attempt(seen.ends), release=seen.version.release_due)
    if seen.sandbox.disk != builder.to_run[1] or (seen.version.release_due and not seen.sandbox.release):
        return StopSandbox()  # planned before its disk, or the one that its release had prepared, was lost
    return Action.START_SANDBOX


def _disk(seen: Observation) -> Step | None:
    """Return the step that brings the disk back, makes or moves it; None once an app may start on it."""
    if seen.recovering:
        return Wait()
    if seen.lost:
        return Action.RECOVER_DISK
    if seen.loss_due:
        return Action.RECORD_LOSS
    if not seen.disk_ready:
        return Action.CREATE_DISK
    return Action.MOVE_DISK if seen.disk_leaving else None


def prepare(version: VersionState) -> Step | None:
    """Return the review, installation or build that a version needs before its start, or None."""
    if version.review_due:
        return Review(version.number)
    if version.build_ready and version.layer_ready:
        return None
    return BuildApp(version.number) if version.layer_ready else Install(version.number)


def _is_judged(builder: Builder, seen: Observation) -> bool:
    return seen.version.is_new and not builder.settled


def _after_ends(builder: Builder, seen: Observation) -> Step | None:
    """Return the step that the ends of earlier attempts require before a new one, or None."""
    if not seen.ends:
        return None
    last = seen.ends[-1]
    if builder.job_type is JobType.ONE_TIME:
        assert last.end is not None, "it has ended"
        if last.end.cause in (EndCause.HOST_RESTARTED, EndCause.STOPPED):
            return None  # it runs again after an external stop
        return Settle(Status.COMPLETED if last.end.exit_code == 0 else Status.FAILED)
    crashed = is_crash(last) if _is_judged(builder, seen) else not any(end.listening_at for end in seen.ends)
    if crashed and any(is_crash(end) for end in seen.ends):
        return GiveUp(too_often=False)
    if len(recent_crashes(seen.ends, seen.now)) >= MAX_EXITS:
        return GiveUp(too_often=True)
    due = end_time(last) + delay_before_restart(seen.ends, seen.now)
    return Wait(due) if due > seen.now else None


@dataclass(frozen=True, slots=True)
class VersionState:
    """Progress of one version towards its start. ``layer_ready`` is True also when it needs none."""

    number: int
    port: int
    bundle_hash: str
    layer_ready: bool
    #: The result of its build is there, or it has no build command.
    build_ready: bool = True
    #: Key of its build's result; empty without a build command.
    build_key: str = ""
    #: It speaks HTTP/2 without TLS on its port.
    h2c: bool = False
    #: Its release command has not succeeded yet.
    release_due: bool = False
    #: The QA gate has not run yet.
    qa_due: bool = False
    #: A version that fails the QA gate is stopped.
    qa_required: bool = False
    #: The review has not passed yet: nothing of it may run.
    review_due: bool = False
    #: It was never up.
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One sandbox of a further process, wanted or still there.

    ``sandbox`` is the record that has not ended yet, ``report`` what the engine says of it, ``ends`` the ended ones of
    the present run, oldest first. Not ``wanted``: the version has no such process, or its scale is smaller now.
    """

    name: str
    number: int
    wanted: bool
    sandbox: Sandbox | None = None
    report: SandboxReport | None = None
    ends: tuple[Sandbox, ...] = ()

    @property
    def ended(self) -> Sandbox | None:
        """The sandbox, if it was started and has ended by itself."""
        is_started = self.sandbox is not None and self.sandbox.started_at is not None
        return self.sandbox if is_started and (self.report is None or not self.report.alive) else None

    @property
    def young(self) -> Sandbox | None:
        """The sandbox, until it has lived as long as a worker must to be up."""
        return self.sandbox if self.sandbox is not None and self.sandbox.listening_at is None else None


@dataclass(frozen=True, slots=True)
class Observation:
    """Observed state of one builder.

    ``version`` is the one to run (``Builder.to_run``), ``candidate`` the one that is being prepared, if any, and
    ``trial`` the record of its trial that has not ended. ``disk_ready``: there is a disk of the version's
    size, and the ledger counts it. ``disk_bundle`` is the hash of the last bundle on it, None without a disk or
    before the first; ``disk_build`` is the key of the build's result on it, empty without one. ``lost``: the disk is
    missing and has a backup; ``recovering``: it is being restored; ``loss_due``: it was made, is missing, and nothing
    says so yet. ``sandbox`` is the builder's record that has not
    ended yet, ``report`` what the engine says of it. ``ends`` are the ended sandboxes of the present run, newest last.
    ``disk_leaving``: the member of the disk is to be emptied. ``paid_frozen``: the ledger counts it as frozen.
    Sandboxes of a release count as ``sandbox`` while they run, and are not among ``ends``; those of further
    ``processes`` are in neither.
    """

    now: datetime
    version: VersionState
    candidate: VersionState | None
    trial: Sandbox | None
    disk_ready: bool
    disk_bundle: str | None
    sandbox: Sandbox | None
    report: SandboxReport | None
    ends: tuple[Sandbox, ...]
    route: Route | None
    paid_frozen: bool = False
    lost: bool = False
    recovering: bool = False
    loss_due: bool = False
    disk_build: str = ""
    disk_leaving: bool = False
    processes: tuple[ProcessState, ...] = ()


class Action(Enum):
    """Steps without arguments. The value names it in the points at which a test kills the service."""

    #: Create the disk and bill it from now on; a candidate's disk is a copy of the builder's.
    CREATE_DISK = "CreateDisk"
    #: Move the disk from a member of the cluster that is to be emptied.
    MOVE_DISK = "MoveDisk"
    #: Record that the disk is gone for good, so that another one may be made.
    RECORD_LOSS = "RecordLoss"
    #: Restore the newest backup of a missing disk.
    RECOVER_DISK = "RecoverDisk"
    #: Write the version's files, and what its build command made, into ``/app``.
    PUT_BUNDLE = "PutBundle"
    #: Start the recorded sandbox.
    START_SANDBOX = "StartSandbox"
    #: Wait until the app listens (a worker: has lived for a second), ends, or exceeds the start timeout.
    AWAIT_LISTENING = "AwaitListening"
    #: Wait until the release command ends; one that exceeds its time is stopped.
    AWAIT_RELEASE = "AwaitRelease"
    #: Run the QA gate on the app.
    CHECK_APP = "CheckApp"
    #: Freeze the sandbox, unless a request has arrived.
    FREEZE = "Freeze"
    #: Thaw the sandbox; its route opens in the next step.
    THAW = "Thaw"
    #: Record how the sandbox ended by itself, and remove its remains.
    RECORD_END = "RecordEnd"
    #: Remove the preview's route.
    REMOVE_ROUTE = "RemoveRoute"
    #: Remove the disk and the logs, and mark the builder deleted.
    FORGET = "Forget"
    #: Record a trial of the candidate before the engine creates it.
    PLAN_TRIAL = "PlanTrial"
    #: Start the candidate on a copy of the disk, without egress; one that exits early is rejected.
    TRY_CANDIDATE = "TryCandidate"
    #: Remove a trial that is no longer needed.
    END_TRIAL = "EndTrial"
    #: Hand over to the candidate: it is the version to run from now on.
    HAND_OVER = "HandOver"
    #: Remove unused disks.
    DROP_DISKS = "DropDisks"


@dataclass(frozen=True, slots=True)
class Review:
    """Review this version's code."""

    version: int


@dataclass(frozen=True, slots=True)
class Install:
    """Build the layer of this version, the current one or the candidate."""

    version: int


@dataclass(frozen=True, slots=True)
class BuildApp:
    """Run the build command of this version, the current one or the candidate."""

    version: int


@dataclass(frozen=True, slots=True)
class PlanSandbox:
    """Record a new sandbox before the engine creates it. A ``release`` runs the release command, not the app.

    ``attempt`` counts within the run, of a further ``process`` and ``number`` its own.
    """

    attempt: int
    release: bool = False
    process: str = ""
    number: int = 1


@dataclass(frozen=True, slots=True)
class StopSandbox:
    """Stop the sandbox and record how it ended."""

    #: Let requests in flight finish first.
    drain: bool = False


@dataclass(frozen=True, slots=True)
class OfProcess:
    """A step of one sandbox of a further process."""

    sandbox: Sandbox


class StartProcess(OfProcess):
    """Start the recorded sandbox of a further process."""


class AwaitProcess(OfProcess):
    """Wait until a further process has lived as long as a worker must, or has ended."""


@dataclass(frozen=True, slots=True)
class StopProcesses:
    """Stop these sandboxes of further processes at the same time, and record how each ended."""

    sandboxes: tuple[Sandbox, ...]


class RecordProcessEnd(OfProcess):
    """Record how a further process ended by itself, and remove its remains."""


@dataclass(frozen=True, slots=True)
class SetRoute:
    """Set the preview's route."""

    route: Route


@dataclass(frozen=True, slots=True)
class Settle:
    """Record the outcome of the desired state."""

    status: Status


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Give up an app that exited before it ever listened in this run, or too often: its status is ``failed``.

    ``process`` is the further process that did so.
    """

    too_often: bool
    process: ProcessState | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until this time (None: until something changes)."""

    until: datetime | None = None


ProcessStep = StartProcess | AwaitProcess | StopProcesses | RecordProcessEnd
Step = (
    Action | Review | Install | BuildApp | PlanSandbox | StopSandbox | ProcessStep | SetRoute | Settle | GiveUp | Wait
)


def name_of(step: Step) -> str:
    """Return the step's name."""
    return step.value if isinstance(step, Action) else type(step).__name__


def candidate_step(builder: Builder, seen: Observation) -> Step | None:
    """Return the next step for the candidate version, or None."""
    if builder.desired is Desired.DELETED:
        return None
    if seen.trial is not None and seen.trial.version != builder.candidate_version:
        return Action.END_TRIAL
    if builder.spare_disks:
        return Action.DROP_DISKS
    if seen.candidate is None or builder.handover is not None:
        return None
    return prepare(seen.candidate) or _try(builder, seen) or Action.HAND_OVER


def _try(builder: Builder, seen: Observation) -> Step | None:
    """Return the trial's next step: it keeps a version that cannot start from interrupting the app that serves.

    Jobs have no trial, since they would do their work twice, nor have sandboxes, which start nothing, nor has a
    restored disk, whose version ran on it before. A version with a release command has none either: it may not start
    before that has run, which runs once, on its own disk.
    """
    assert seen.candidate is not None, "the caller checked it"
    has_trial = builder.job_type.stays_up and builder.job_type.is_judged and not seen.candidate.release_due
    is_restored = builder.candidate is not None and builder.candidate.disk is not None
    if not has_trial or seen.sandbox is None or is_restored:
        return Action.END_TRIAL if seen.trial is not None else None
    return Action.PLAN_TRIAL if seen.trial is None else Action.TRY_CANDIDATE
