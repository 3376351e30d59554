"""The one next step that brings a builder nearer to what is wanted of it.

``next_step`` is the heart of the reconciler and pure: it looks at what is wanted and at what there is, and
names one idempotent step. Carried out again after a crash, it does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from builderd.domain.builders import Builder, Desired, Handover, JobType, Status, StopKind, Visibility
from builderd.domain.ids import secret_hash
from builderd.domain.previews import Address, Route, RouteState
from builderd.domain.sandboxes import EndCause, Sandbox, SandboxReport, SandboxState

#: So many exits within this time, and an always_on app is given up.
MAX_EXITS = 5
EXIT_WINDOW = timedelta(minutes=10)
FIRST_RESTART_DELAY = timedelta(seconds=1)
MAX_RESTART_DELAY = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class VersionState:
    """How far one version is on the way to being started. ``layer_ready`` is True also when it needs none."""

    number: int
    port: int
    bundle_hash: str
    layer_ready: bool
    #: The QA gate is to judge it still.
    qa_due: bool = False
    #: What fails the QA gate does not stay up.
    qa_required: bool = False
    #: The review is to let it pass still: nothing of it runs before that.
    review_due: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """What the reconciler saw in one look.

    ``version`` is the one that is to run (``Builder.to_run``), ``candidate`` the one that is prepared beside it,
    if any, and ``trial`` the record of its trial that has not ended. ``disk_ready``: there is a disk of the version's
    size, and the ledger counts it. ``disk_bundle`` is the hash of what was last put on it, None without a disk or
    before the first. ``lost``: there is no disk, but a backup of it; ``recovering``: that is being brought back.
    ``sandbox`` is the builder's record that has not ended yet, ``report`` what the engine says of
    it. ``ends`` are the ended sandboxes of the present run, newest last. ``paid_frozen``: the ledger counts it as
    frozen.
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


# The steps


@dataclass(frozen=True, slots=True)
class Review:
    """Have this version's code reviewed, and beside that what it needs installed as far as that runs no code of it."""

    version: int


@dataclass(frozen=True, slots=True)
class Install:
    """Make the layer of this version, the one that is to run or the candidate."""

    version: int


@dataclass(frozen=True, slots=True)
class CreateDisk:
    """Make the disk, and count it from now on: a candidate's is a copy of the builder's."""


@dataclass(frozen=True, slots=True)
class RecoverDisk:
    """The disk is gone: have its newest backup brought back, rather than begin anew with an empty one."""


@dataclass(frozen=True, slots=True)
class PutBundle:
    """Write the version's files into ``/app``."""


@dataclass(frozen=True, slots=True)
class PlanSandbox:
    """Record a new sandbox, before anything of it exists in the world."""

    attempt: int


@dataclass(frozen=True, slots=True)
class StartSandbox:
    """Have the engine start the recorded sandbox."""


@dataclass(frozen=True, slots=True)
class AwaitListening:
    """Wait until the app can be reached, ends, or runs out of time."""


@dataclass(frozen=True, slots=True)
class CheckApp:
    """Let the QA gate judge the app that listens."""


@dataclass(frozen=True, slots=True)
class StopSandbox:
    """Stop the sandbox and record how it ended."""

    #: The requests that it works on may finish first.
    drain: bool = False


@dataclass(frozen=True, slots=True)
class Freeze:
    """Have the sandbox stand still, unless a visitor is there."""


@dataclass(frozen=True, slots=True)
class Thaw:
    """Have the sandbox go on, and let those in who wait for it: as one step, since they do wait."""

    route: Route


@dataclass(frozen=True, slots=True)
class RecordEnd:
    """The sandbox has ended by itself: record how, and remove what is left of it."""


@dataclass(frozen=True, slots=True)
class SetRoute:
    """Let the preview show this."""

    route: Route


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """The preview forgets the host."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the disk and the logs: the builder is then deleted."""


@dataclass(frozen=True, slots=True)
class Settle:
    """What was wanted has come to this outcome."""

    status: Status


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The app exited before it ever listened in this run, or too often: the outcome is ``failed``."""

    too_often: bool


@dataclass(frozen=True, slots=True)
class PlanTrial:
    """Record a trial of the candidate, before anything of it exists in the world."""


@dataclass(frozen=True, slots=True)
class TryCandidate:
    """Start the candidate on a copy of the disk, without egress: one that exits early does not take over."""


@dataclass(frozen=True, slots=True)
class EndTrial:
    """Take away a trial that nobody waits for any more."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """From now on the candidate is what runs."""


@dataclass(frozen=True, slots=True)
class DropDisks:
    """Remove the disks that are used no more."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before this time (None: until something changes)."""

    until: datetime | None = None


Step = (
    Review
    | Install
    | CreateDisk
    | RecoverDisk
    | PutBundle
    | PlanSandbox
    | StartSandbox
    | AwaitListening
    | CheckApp
    | StopSandbox
    | Freeze
    | Thaw
    | RecordEnd
    | SetRoute
    | RemoveRoute
    | Forget
    | Settle
    | GiveUp
    | PlanTrial
    | TryCandidate
    | EndTrial
    | HandOver
    | DropDisks
    | Wait
)


def next_step(builder: Builder, seen: Observed) -> Step:
    """The one step that brings the world nearer to what is wanted of the builder."""
    if _ended_by_itself(seen):
        return _close_route(builder, seen) or RecordEnd()
    match builder.desired:
        case Desired.DELETED:
            return _towards_deleted(builder, seen)
        case Desired.STOPPED:
            return _towards_stopped(builder, seen)
        case Desired.RUNNING:
            return _towards_running(builder, seen)


def _ended_by_itself(seen: Observed) -> bool:
    """The record says it runs, the engine says it does not (any more)."""
    if seen.sandbox is None or seen.sandbox.started_at is None:
        return False
    return seen.report is None or not seen.report.alive


def _close_route(builder: Builder, seen: Observed) -> Step | None:
    """Keep visitors from the sandbox, or None when they are kept from it already.

    This comes before a sandbox goes, since another builder's may have its address from then on.
    """
    if builder.desired is Desired.DELETED:
        return RemoveRoute() if seen.route is not None else None
    closed = closed_route(builder)
    return SetRoute(closed) if seen.route != closed else None


def closed_route(builder: Builder) -> Route:
    """What the preview shows while there is no app to lead visitors to."""
    return _route(builder, _closed_state(builder))


def _closed_state(builder: Builder) -> RouteState:
    if builder.job_type is JobType.ONE_TIME:
        return RouteState.JOB
    if builder.desired is Desired.RUNNING:
        waits = builder.stop_kind is StopKind.IDLE or _is_handing_over(builder)
        return RouteState.HELD if waits else RouteState.STARTING
    if builder.status is Status.FAILED:
        return RouteState.FAILED
    match builder.stop_kind:
        case StopKind.IDLE:
            return RouteState.ASLEEP
        case StopKind.CAP:
            return RouteState.CAPPED
    return RouteState.STOPPED


def _is_handing_over(builder: Builder) -> bool:
    """One that serves makes way for another, which will serve in moments."""
    return builder.handover is not None and builder.status is Status.RUNNING


def _route(builder: Builder, state: RouteState, destination: Address | None = None) -> Route:
    token = secret_hash(builder.service_token)
    private = builder.visibility is Visibility.PRIVATE
    return Route(
        host=builder.host,
        state=state,
        destination=destination,
        token_hash=token if private else None,
        builder_id=builder.id,
        owner_hash=None if private else token,
    )


def _towards_deleted(builder: Builder, seen: Observed) -> Step:
    if builder.settled:
        return Wait()
    if (closing := _close_route(builder, seen)) is not None:
        return closing
    if seen.trial is not None:
        return EndTrial()
    return StopSandbox() if seen.sandbox is not None else Forget()


def _towards_stopped(builder: Builder, seen: Observed) -> Step:
    if (closing := _close_route(builder, seen)) is not None:
        return closing
    if seen.sandbox is not None:
        return StopSandbox()
    return Wait() if builder.settled else Settle(Status.STOPPED)


def _towards_running(builder: Builder, seen: Observed) -> Step:
    if seen.sandbox is not None and seen.sandbox.run != builder.run:
        return _close_route(builder, seen) or StopSandbox(drain=builder.handover is not None)
    if seen.sandbox is None or seen.sandbox.started_at is None:
        return _towards_started(builder, seen)
    if builder.job_type is JobType.ALWAYS_ON:
        if seen.sandbox.listening_at is None:
            return AwaitListening()
        if builder.asleep_since is not None and _is_up(builder):
            return _towards_frozen(builder, seen)
        if seen.paid_frozen or _is_frozen(seen):
            return Thaw(_opened(builder, seen))
        if builder.handover is Handover.FORWARD and seen.version.qa_due and seen.version.qa_required:
            return CheckApp()  # visitors wait: should it fail, they never see it
        if (opening := _open_route(builder, seen)) is not None:
            return opening
        if seen.version.qa_due and not builder.settled:
            return CheckApp()
    return Wait() if _is_up(builder) else Settle(Status.RUNNING)


def _is_up(builder: Builder) -> bool:
    """Whether that it runs is known already."""
    return builder.settled and builder.status is Status.RUNNING and builder.stop_kind is None


def _towards_frozen(builder: Builder, seen: Observed) -> Step:
    """Visitors are held before anything stands still, so that none is caught in the middle."""
    asleep = _route(builder, RouteState.ASLEEP)
    if seen.route != asleep:
        return SetRoute(asleep)
    return Wait() if seen.paid_frozen and _is_frozen(seen) else Freeze()


def _is_frozen(seen: Observed) -> bool:
    return seen.report is not None and seen.report.state is SandboxState.FROZEN


def _open_route(builder: Builder, seen: Observed) -> Step | None:
    """Lead visitors to the app, or None when they come to it already."""
    opened = _opened(builder, seen)
    return SetRoute(opened) if seen.route != opened else None


def _opened(builder: Builder, seen: Observed) -> Route:
    assert seen.report is not None, "it runs"
    assert seen.report.ip is not None, "what runs has an address"
    return _route(builder, RouteState.OPEN, Address(seen.report.ip, seen.version.port))


def _towards_started(builder: Builder, seen: Observed) -> Step:
    if seen.sandbox is None and (verdict := _after_ends(builder, seen)) is not None:
        return verdict
    if (closing := _close_route(builder, seen)) is not None:
        return closing
    if (preparing := prepare(seen.version)) is not None:
        return preparing
    if seen.recovering:
        return Wait()
    if seen.lost:
        return RecoverDisk()
    if not seen.disk_ready:
        return CreateDisk()
    if seen.disk_bundle != seen.version.bundle_hash:
        return PutBundle()
    if seen.sandbox is None:
        return PlanSandbox(attempt=next_attempt(seen.ends))
    return StartSandbox()


def next_attempt(sandboxes: Sequence[Sandbox]) -> int:
    """Of a run of which these are known: early ones of a long run may be forgotten."""
    return max((one.attempt for one in sandboxes), default=0) + 1


def prepare(version: VersionState) -> Step | None:
    """What a version needs before anything of it is started, a builder's first one as well as a candidate."""
    if version.review_due:
        return Review(version.number)
    return None if version.layer_ready else Install(version.number)


def _after_ends(builder: Builder, seen: Observed) -> Step | None:
    """What the ends of earlier attempts of this run demand before another one is made."""
    if not seen.ends:
        return None
    last = seen.ends[-1]
    if builder.job_type is JobType.ONE_TIME:
        return _job_verdict(last)
    if not any(end.listening_at for end in seen.ends) and any(is_crash(end) for end in seen.ends):
        return GiveUp(too_often=False)
    if len(recent_crashes(seen.ends, seen.now)) >= MAX_EXITS:
        return GiveUp(too_often=True)
    due = _end_time(last) + _restart_delay_after(seen.ends, seen.now)
    return Wait(due) if due > seen.now else None


def _restart_delay_after(ends: Sequence[Sandbox], now: datetime) -> timedelta:
    """How long after its last end it is started again.

    The first lost monitor is the machine's fault and delays nothing; one after the other delay like crashes, and are
    never given up.
    """
    if is_crash(ends[-1]):
        return restart_delay(len(recent_crashes(ends, now)))
    if _lost_its_monitor(ends[-1]):
        return restart_delay(len([end for end in ends if _lost_its_monitor(end) and _is_recent(end, now)]) - 1)
    return timedelta(0)


def _job_verdict(last: Sandbox) -> Step | None:
    """A job that was cut off from outside runs again; any other end is its outcome."""
    assert last.end is not None
    if last.end.cause in (EndCause.HOST_RESTARTED, EndCause.STOPPED):
        return None
    return Settle(Status.COMPLETED if last.end.exit_code == 0 else Status.FAILED)


def is_crash(sandbox: Sandbox) -> bool:
    """Whether the app's own doing ended it (an unknown end counts, so that nothing restarts for ever)."""
    return sandbox.end is not None and sandbox.end.cause in (
        EndCause.EXITED,
        EndCause.OUT_OF_MEMORY,
        EndCause.UNKNOWN,
    )


def recent_crashes(sandboxes: Sequence[Sandbox], now: datetime) -> Sequence[Sandbox]:
    """Those that count towards ``MAX_EXITS``."""
    return [one for one in sandboxes if is_crash(one) and _is_recent(one, now)]


def _lost_its_monitor(sandbox: Sandbox) -> bool:
    return sandbox.end is not None and sandbox.end.cause is EndCause.MONITOR_LOST


def _is_recent(sandbox: Sandbox, now: datetime) -> bool:
    return _end_time(sandbox) > now - EXIT_WINDOW


def restart_delay(exits: int) -> timedelta:
    """0, 1, 2, 4, … seconds after none, one, two, three exits, at most a minute."""
    return min(FIRST_RESTART_DELAY * (1 << exits - 1), MAX_RESTART_DELAY) if exits > 0 else timedelta(0)


def _end_time(sandbox: Sandbox) -> datetime:
    assert sandbox.end is not None
    return sandbox.end.at or sandbox.created_at
