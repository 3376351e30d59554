"""Builders: the resource that a user creates, with its status and its desired state. See ``domain.next_step``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from builderd.domain.ids import BuilderId, DiskId, TenantId

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


#: The command of a sandbox without one of its own: its init (tini) reaps what others leave behind.
SANDBOX_COMMAND = "exec sleep infinity"


class JobType(StrEnum):
    #: A web app: kept running, restarted when it exits.
    ALWAYS_ON = "always_on"
    #: A command that runs to its end.
    ONE_TIME = "one_time"
    #: A process without a port: kept running as an app is, but nobody visits it.
    WORKER = "worker"
    #: No app: a sandbox that stays for commands, files, SSH and terminals. Its port may be visited.
    SANDBOX = "sandbox"

    @property
    def has_preview(self) -> bool:
        """True for what may listen on a port and is visited."""
        return self in (JobType.ALWAYS_ON, JobType.SANDBOX)

    @property
    def must_listen(self) -> bool:
        """True for what is up only once its port can be reached."""
        return self is JobType.ALWAYS_ON

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
    holds more than the code, a restored backup or files from a caller, so that it is kept. ``location`` is the member
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
    def starts(self) -> bool:
        """True while an app of the builder is being started or takes over."""
        return self.desired is Desired.RUNNING and (not self.settled or self.handover is not None)

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
