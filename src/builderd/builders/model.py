"""Builders: the resource that a user creates, with its status, its restarts and when it is idle.

See ``domain.next_step`` for how the desired state is reached.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from typing import NewType

from builderd.core.ids import BuilderId, DiskId, TenantId
from builderd.sandboxes.model import MACHINE_CAUSES, EndCause, Sandbox

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


#: The command of a sandbox without one of its own: its init (tini) reaps what others leave behind.
SANDBOX_COMMAND = "exec sleep infinity"
#: The command of a static site without one of its own: all of its files are served.
STATIC_COMMAND = "serve-static ."
#: GB of memory of a static site whose request names none: its server needs a tenth.
STATIC_MEMORY = 0.125


class JobType(StrEnum):
    #: A web app: kept running, restarted when it exits.
    ALWAYS_ON = "always_on"
    #: A web app of files alone: those of a folder, which the server of static sites (``serve-static``) serves.
    STATIC = "static"
    #: A command that runs to its end.
    ONE_TIME = "one_time"
    #: A process without a port: kept running as an app is, but nobody visits it.
    WORKER = "worker"
    #: No app: a sandbox that stays for commands, files, SSH and terminals. Its port may be visited.
    SANDBOX = "sandbox"

    @property
    def has_preview(self) -> bool:
        """True for what may listen on a port and is visited."""
        return self in (JobType.ALWAYS_ON, JobType.STATIC, JobType.SANDBOX)

    @property
    def must_listen(self) -> bool:
        """True for what is up only once its port can be reached."""
        return self in (JobType.ALWAYS_ON, JobType.STATIC)

    @property
    def is_judged(self) -> bool:
        """True for what has a process of its own, which the QA gate judges."""
        return self is not JobType.SANDBOX

    @property
    def stays_up(self) -> bool:
        """True for what is restarted when it exits."""
        return self is not JobType.ONE_TIME


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


class StopKind(StrEnum):
    """Origin of a stop, which decides what starts the builder again."""

    #: A call: it stays stopped until one starts it.
    PERSON = "person"
    #: Stopped for idleness: the next visitor starts it.
    IDLE = "idle"
    #: It would cost more than it may: it stays stopped.
    CAP = "cap"


class Desired(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    DELETED = "deleted"


class Handover(StrEnum):
    #: The candidate takes over: it is what runs from here on, on its own disk.
    FORWARD = "forward"
    #: The current version is started again on its own disk, after a candidate that did not come up or for a new token.
    AGAIN = "again"


@dataclass(frozen=True, slots=True)
class Cause:
    """Cause of a desired state: the actor, as events name it, and the reason in words."""

    actor: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Version that is being deployed while the current one serves.

    It will run on ``disk``; None: a copy of the builder's that is still to be made. ``opens``: a private preview
    becomes public with it; the version that serves until then stays private.
    """

    version: int
    disk: DiskId | None = None
    opens: bool = False


@dataclass(frozen=True, slots=True)
class Builder:
    """A builder's row. ``generation`` grows with each requested start; a sandbox belongs to one generation.

    ``version`` is the current version's number, ``disk`` where it keeps its files. ``cause`` says why and by
    whom the desired state was set. ``observed_generation`` is the last one whose outcome (up, failed, ended) is known.

    ``candidate`` is None at rest. During a ``handover`` the preview pauses requests. ``spare_disks`` are unused and
    will be removed.

    ``spending_cap`` is per calendar month, ``cap_warned_at`` the time of the last warning that most of it is
    spent. ``asleep_since`` is when its sandbox was to be frozen, None while it is to run; the builder's status is
    ``running`` in both. ``stop_kind`` is set with a stop and kept until it is up again. ``member`` is the instance
    (``Instance.member``) that keeps its disk and runs its sandboxes. ``disk_released_at`` is when a failed builder's
    disk was given back; its next start makes a new one. ``disk_has_data``: the disk of a builder that never was up
    has more than the code, a restored backup or files from a caller, so that it is kept. ``location`` is the member
    of the cluster on which it was last started, empty on a single machine. ``disk_is_made``: its disk was made, so that
    a missing one is lost; False before the first, and once a loss is recorded.
    """

    id: BuilderId
    tenant_id: TenantId
    name: str
    job_type: JobType
    visibility: Visibility
    service_token: str
    host: str
    version: int
    disk: DiskId
    created_at: datetime
    updated_at: datetime
    auto_stop_interval: int = 0
    backup_interval_hours: int = 0
    desired: Desired = Desired.RUNNING
    cause: Cause = Cause()
    generation: int = 1
    observed_generation: int = 0
    status: Status = Status.CREATING
    status_reason: str = ""
    exit_code: int | None = None
    failure_code: str | None = None
    last_active_at: datetime | None = None
    deleted_at: datetime | None = None
    candidate: Candidate | None = None
    handover: Handover | None = None
    spare_disks: tuple[DiskId, ...] = ()
    spending_cap: Decimal | None = None
    cap_warned_at: datetime | None = None
    asleep_since: datetime | None = None
    stop_kind: StopKind | None = None
    member: str = ""
    disk_released_at: datetime | None = None
    disk_has_data: bool = False
    location: str = ""
    disk_is_made: bool = False
    #: Number of sandboxes of each further process, of the serving version and of the candidate.
    scale: Mapping[str, int] = field(default_factory=dict)

    @property
    def to_run(self) -> tuple[int, DiskId]:
        """The version that runs when it runs, and its disk: the candidate's from the moment that it takes over."""
        candidate = self.candidate
        if self.handover is Handover.FORWARD and candidate is not None and candidate.disk is not None:
            return candidate.version, candidate.disk
        return self.version, self.disk

    @property
    def candidate_version(self) -> int | None:
        """Number of the candidate's version."""
        return self.candidate.version if self.candidate else None

    @property
    def disks(self) -> tuple[DiskId, ...]:
        """All disks of the builder: the serving version's, the candidate's, and unused ones."""
        candidate = (self.candidate.disk,) if self.candidate and self.candidate.disk else ()
        return (self.disk, *candidate, *self.spare_disks)

    @property
    def further(self) -> int:
        """Number of sandboxes of further processes, which each take what the app's own takes."""
        return sum(self.scale.values())

    @property
    def wakes(self) -> bool:
        """True if a visitor starts it again: it was, or is being, stopped for idleness."""
        was_up = self.status in (Status.RUNNING, Status.STOPPED)
        return self.desired is Desired.STOPPED and self.stop_kind is StopKind.IDLE and was_up

    @property
    def settled(self) -> bool:
        """True once the desired state has an outcome, good or bad."""
        return is_settled(self.desired, self.status, observed=self.observed_generation == self.generation)


def is_settled(desired: Desired, status: Status, *, observed: bool) -> bool:
    """Return True once the desired state has an outcome; ``observed``: the latest generation was observed."""
    match desired:
        case Desired.DELETED:
            return status is Status.DELETED
        case Desired.STOPPED:
            return observed and status in (Status.STOPPED, Status.FAILED, Status.COMPLETED)
        case Desired.RUNNING:
            return observed


def name_error(name: str) -> str | None:
    """Return the reason to reject a name, or None."""
    if not NAME.fullmatch(name):
        return "must be 1 to 63 lower-case letters, digits and hyphens, and begin and end with a letter or digit"
    if name.startswith("xn--"):
        return "must not begin with xn--, which marks encoded international names"
    return None


LeaseId = NewType("LeaseId", str)

MAX_SECONDS = 3600
MAX_REASON_BYTES = 1000
#: Limit per builder.
MAX_LEASES = 100


@dataclass(frozen=True, slots=True)
class Lease:
    """Lease: its builder is not frozen or stopped for idleness until ``expires_at``. ``created_by`` is an actor."""

    id: LeaseId
    builder_id: BuilderId
    reason: str
    created_by: str
    created_at: datetime
    expires_at: datetime


class IdleAction(Enum):
    FREEZE = "freeze"
    STOP = "stop"


def can_idle(builder: Builder) -> bool:
    """Return True if it may be frozen or stopped for idleness; an ``auto_stop_interval`` of 0 forbids both."""
    at_rest = builder.candidate is None and builder.handover is None and builder.settled
    runs = builder.desired is Desired.RUNNING and builder.status is Status.RUNNING
    return runs and at_rest and builder.job_type.has_preview and builder.auto_stop_interval > 0


def auto_stop_error(job_type: JobType, interval: int) -> str | None:
    """Return the reason why a builder of this type cannot have this ``auto_stop_interval``, or None."""
    if job_type is JobType.WORKER and interval > 0:
        return "must be 0 for a worker: it has no visitors, so it would be stopped as idle and nothing would wake it"
    return None


def idle_action(
    builder: Builder, leases: Sequence[Lease], now: datetime, freeze_after: timedelta | None, cpu_idle_for: timedelta
) -> IdleAction | None:
    """Decide whether an idle builder is frozen or auto-stopped; None while it is used or has a lease.

    ``cpu_idle_for`` is the time since it last used CPU. ``freeze_after`` None: never freeze. An app with further
    processes is never frozen, and stops as a whole.
    """
    if not can_idle(builder) or any(lease.expires_at > now for lease in leases):
        return None
    # A lease counts as use until its end.
    idle_for = now - max([builder.last_active_at or builder.updated_at, *(lease.expires_at for lease in leases)])
    if idle_for >= timedelta(minutes=builder.auto_stop_interval):
        return IdleAction.STOP
    if freeze_after is None or builder.asleep_since is not None or min(idle_for, cpu_idle_for) < freeze_after:
        return None
    if builder.further:  # a worker works though nobody visits the app
        return None
    return IdleAction.FREEZE


def stop_reason(builder: Builder) -> str:
    """Reason of a stop: ``idle for 15 minutes``."""
    return _idle_for(builder.auto_stop_interval, "minute")


def freeze_reason(freeze_after: timedelta) -> str:
    """Reason of a freeze: ``idle for 60 seconds``."""
    return _idle_for(freeze_after.total_seconds(), "second")


def _idle_for(number: float, unit: str) -> str:
    return f"idle for {number:g} {unit}{'' if number == 1 else 's'}"


#: An always_on app with this many crashes within the window is given up.
MAX_EXITS = 5
EXIT_WINDOW = timedelta(minutes=10)
FIRST_RESTART_DELAY = timedelta(seconds=1)
MAX_RESTART_DELAY = timedelta(seconds=60)


def next_attempt(sandboxes: Sequence[Sandbox]) -> int:
    """Return the number of the next attempt; the sandboxes of early attempts may be missing."""
    return max((one.attempt for one in sandboxes), default=0) + 1


def delay_before_restart(ends: Sequence[Sandbox], now: datetime) -> timedelta:
    """Return the delay between the last end and the next start.

    The first end by a fault of the machine delays nothing; repeated ones delay like crashes, but are never given up.
    """
    if is_crash(ends[-1]):
        return restart_delay(len(recent_crashes(ends, now)))
    faults = [one for one in ends if one.end is not None and one.end.cause in MACHINE_CAUSES]
    if ends[-1] not in faults:
        return timedelta(0)
    return restart_delay(len([one for one in faults if end_time(one) > now - EXIT_WINDOW]) - 1)


def is_crash(sandbox: Sandbox) -> bool:
    """Return True if the app ended by itself. An unknown end counts, so that no app restarts for ever."""
    causes = (EndCause.EXITED, EndCause.OUT_OF_MEMORY, EndCause.UNKNOWN)
    return sandbox.end is not None and sandbox.end.cause in causes


def recent_crashes(sandboxes: Sequence[Sandbox], now: datetime) -> Sequence[Sandbox]:
    """Return the crashes that count towards ``MAX_EXITS``."""
    return [one for one in sandboxes if is_crash(one) and end_time(one) > now - EXIT_WINDOW]


def is_given_up(ends: Sequence[Sandbox]) -> bool:
    """Return True for a process that ended too often: ``MAX_EXITS`` crashes within the window, the last one included.

    Judged by its ends alone, so that it stays given up until it is restarted by name or with its app.
    """
    return bool(ends) and is_crash(ends[-1]) and len(recent_crashes(ends, end_time(ends[-1]))) >= MAX_EXITS


def restart_delay(exits: int) -> timedelta:
    """Return 0, 1, 2, 4, … seconds after none, one, two, three exits, at most a minute."""
    return min(FIRST_RESTART_DELAY * (1 << exits - 1), MAX_RESTART_DELAY) if exits > 0 else timedelta(0)


def end_time(sandbox: Sandbox) -> datetime:
    assert sandbox.end is not None
    return sandbox.end.at or sandbox.created_at
