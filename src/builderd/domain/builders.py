"""A builder: what the user creates. Its states, what is wanted of it, and the one next step towards that.

``next_step`` is the heart of the reconciler and pure: it looks at what is wanted and at what there is, and
names one idempotent step. Carried out again after a crash, it does no harm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.previews import Route, RouteState
from builderd.domain.sandboxes import EndCause, Sandbox, SandboxReport, SandboxState

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

#: So many exits within this time, and an always_on app is given up.
MAX_EXITS = 5
EXIT_WINDOW = timedelta(minutes=10)
FIRST_RESTART_DELAY = timedelta(seconds=1)
MAX_RESTART_DELAY = timedelta(seconds=60)


class JobType(StrEnum):
    #: A web app: kept running, restarted when it exits.
    ALWAYS_ON = "always_on"
    #: A command that runs to its end.
    ONE_TIME = "one_time"


class Visibility(StrEnum):
    PUBLIC = "public"
    #: The preview wants the service token.
    PRIVATE = "private"


class Status(StrEnum):
    #: Its first version is being installed and started.
    CREATING = "creating"
    RUNNING = "running"
    STOPPED = "stopped"
    #: A stage failed, it exited too often, or a job ended with another code than 0.
    FAILED = "failed"
    #: A job that ended with code 0.
    COMPLETED = "completed"
    #: Gone from lists; kept for the ledger.
    DELETED = "deleted"


class Desired(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Builder:
    """``run`` counts the times that somebody wanted it started; a sandbox belongs to one run.

    ``version`` is the current version's number. ``desired_reason`` and ``desired_by`` say why and by whom
    the present wish was made. ``settled_run`` is the last run whose outcome (up, failed, ended) is known.
    """

    id: BuilderId
    tenant_id: TenantId
    name: str
    job_type: JobType
    visibility: Visibility
    service_token: str
    host: str
    version: int
    created_at: datetime
    updated_at: datetime
    auto_stop_interval: int = 0
    backup_interval_hours: int = 0
    desired: Desired = Desired.RUNNING
    desired_by: str = ""
    desired_reason: str = ""
    run: int = 1
    settled_run: int = 0
    status: Status = Status.CREATING
    status_reason: str = ""
    exit_code: int | None = None
    failure_code: str | None = None
    last_active_at: datetime | None = None
    deleted_at: datetime | None = None

    @property
    def settled(self) -> bool:
        """Whether what was last wanted has come to its outcome, good or bad."""
        match self.desired:
            case Desired.DELETED:
                return self.status is Status.DELETED
            case Desired.STOPPED:
                return self.status in (Status.STOPPED, Status.FAILED, Status.COMPLETED)
            case Desired.RUNNING:
                return self.settled_run == self.run


def name_fault(name: str) -> str | None:
    """Why a name is refused, or None."""
    if not NAME.fullmatch(name):
        return "must be 1 to 63 lower-case letters, digits and hyphens, and begin and end with a letter or digit"
    if name.startswith("xn--"):
        return "must not begin with xn--, which marks encoded international names"
    return None


# What is seen of the world


@dataclass(frozen=True, slots=True)
class Observed:
    """What the reconciler saw in one look.

    ``sandbox`` is the builder's record that has not ended yet (its ``report`` is what the engine says of it).
    ``ends`` are the ended sandboxes of the present run, newest last. ``layer_ready`` is True also when the
    version needs none. ``disk_bundle`` is the hash of what was last put on the disk, None without a disk or
    before the first.
    """

    now: datetime
    layer_ready: bool
    disk_exists: bool
    disk_bundle: str | None
    bundle_hash: str
    sandbox: Sandbox | None
    report: SandboxReport | None
    ends: tuple[Sandbox, ...]
    route: Route | None


# The steps


@dataclass(frozen=True, slots=True)
class Install:
    """Make the version's layer."""


@dataclass(frozen=True, slots=True)
class CreateDisk:
    """Make the builder's disk."""


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
class StopSandbox:
    """Stop the sandbox and record how it ended."""


@dataclass(frozen=True, slots=True)
class RecordEnd:
    """The sandbox has ended by itself: record how, and remove what is left of it."""


@dataclass(frozen=True, slots=True)
class SetRoute:
    """Let the preview show this."""

    state: RouteState


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
class Wait:
    """Nothing to do before this time (None: until something changes)."""

    until: datetime | None = None


Step = (
    Install
    | CreateDisk
    | PutBundle
    | PlanSandbox
    | StartSandbox
    | AwaitListening
    | StopSandbox
    | RecordEnd
    | SetRoute
    | RemoveRoute
    | Forget
    | Settle
    | GiveUp
    | Wait
)


def next_step(builder: Builder, seen: Observed) -> Step:
    """The one step that brings the world nearer to what is wanted of the builder."""
    if _ended_by_itself(seen):
        # The address may serve another sandbox as soon as this one is removed, so the route goes first.
        return SetRoute(_starting_route(builder)) if _is_open(seen.route) else RecordEnd()
    match builder.desired:
        case Desired.DELETED:
            return _towards_deleted(builder, seen)
        case Desired.STOPPED:
            return _towards_stopped(builder, seen)
        case Desired.RUNNING:
            return _towards_running(builder, seen)


def _is_open(route: Route | None) -> bool:
    return route is not None and route.state is RouteState.OPEN


def _ended_by_itself(seen: Observed) -> bool:
    """The record says it runs, the engine says it does not (any more)."""
    if seen.sandbox is None or seen.sandbox.started_at is None or seen.report is None:
        return False
    return seen.report.state in (SandboxState.EXITED, SandboxState.ABSENT)


def _towards_deleted(builder: Builder, seen: Observed) -> Step:
    if builder.status is Status.DELETED:
        return Wait()
    if seen.route is not None:
        return RemoveRoute()
    if seen.sandbox is not None:
        return StopSandbox()
    return Forget()


def _towards_stopped(builder: Builder, seen: Observed) -> Step:
    resting = builder.status if builder.status in (Status.FAILED, Status.COMPLETED) else Status.STOPPED
    wanted = _resting_route(builder, resting)
    if seen.route is None or seen.route.state is not wanted:
        return SetRoute(wanted)
    if seen.sandbox is not None:
        return StopSandbox()
    if builder.status is not resting:
        return Settle(resting)
    return Wait()


def _resting_route(builder: Builder, status: Status) -> RouteState:
    if builder.job_type is JobType.ONE_TIME:
        return RouteState.JOB
    return RouteState.FAILED if status is Status.FAILED else RouteState.STOPPED


def _towards_running(builder: Builder, seen: Observed) -> Step:
    if seen.sandbox is not None and seen.sandbox.run != builder.run:
        return _leave_old_run(builder, seen)
    if seen.sandbox is None or seen.sandbox.started_at is None:
        return _towards_started(builder, seen)
    if builder.job_type is JobType.ONE_TIME:
        return Wait() if builder.settled else Settle(Status.RUNNING)
    if seen.sandbox.listening_at is None:
        return AwaitListening()
    if not _is_open(seen.route) or _moved(seen):
        return SetRoute(RouteState.OPEN)
    if builder.status is not Status.RUNNING or not builder.settled:
        return Settle(Status.RUNNING)
    return Wait()


def _moved(seen: Observed) -> bool:
    """The route leads to where an earlier sandbox was."""
    if seen.route is None or seen.route.destination is None or seen.report is None:
        return False
    return seen.route.destination.ip != seen.report.ip


def _leave_old_run(builder: Builder, seen: Observed) -> Step:
    if seen.route is None or seen.route.state is not _starting_route(builder):
        return SetRoute(_starting_route(builder))
    return StopSandbox()


def _starting_route(builder: Builder) -> RouteState:
    return RouteState.JOB if builder.job_type is JobType.ONE_TIME else RouteState.STARTING


def _towards_started(builder: Builder, seen: Observed) -> Step:
    if seen.sandbox is None:
        verdict = _after_ends(builder, seen)
        if verdict is not None:
            return verdict
    if seen.route is None or seen.route.state is not _starting_route(builder):
        return SetRoute(_starting_route(builder))
    if not seen.layer_ready:
        return Install()
    if not seen.disk_exists:
        return CreateDisk()
    if seen.disk_bundle != seen.bundle_hash:
        return PutBundle()
    if seen.sandbox is None:
        return PlanSandbox(attempt=len(seen.ends) + 1)
    return StartSandbox()


def _after_ends(builder: Builder, seen: Observed) -> Step | None:
    """What the ends of earlier attempts of this run demand before another one is made."""
    if not seen.ends:
        return None
    last = seen.ends[-1]
    if builder.job_type is JobType.ONE_TIME:
        return _job_verdict(last)
    crashes = [end for end in seen.ends if is_crash(end)]
    if not any(end.listening_at for end in seen.ends) and crashes:
        return GiveUp(too_often=False)
    recent = [end for end in crashes if _end_time(end) > seen.now - EXIT_WINDOW]
    if len(recent) >= MAX_EXITS:
        return GiveUp(too_often=True)
    if not recent or not is_crash(last):
        return None
    due = _end_time(last) + restart_delay(len(recent))
    return Wait(due) if due > seen.now else None


def _job_verdict(last: Sandbox) -> Step | None:
    """A job that the machine's restart cut off runs again; any other end is its outcome."""
    assert last.end is not None
    if last.end.cause is EndCause.HOST_RESTARTED:
        return None
    return Settle(Status.COMPLETED if last.end.exit_code == 0 else Status.FAILED)


def is_crash(sandbox: Sandbox) -> bool:
    """Whether the app's own doing ended it (an unknown end counts, so that nothing restarts for ever)."""
    return sandbox.end is not None and sandbox.end.cause in (
        EndCause.EXITED,
        EndCause.OUT_OF_MEMORY,
        EndCause.UNKNOWN,
    )


def restart_delay(exits: int) -> timedelta:
    """1, 2, 4, … seconds after the first, second, third exit, at most a minute."""
    return min(FIRST_RESTART_DELAY * (1 << max(exits - 1, 0)), MAX_RESTART_DELAY)


def _end_time(sandbox: Sandbox) -> datetime:
    assert sandbox.end is not None
    return sandbox.end.at or sandbox.created_at
