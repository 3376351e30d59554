"""Backups: copies of a builder's disk at one moment, and the rules of their retention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from builderd.core.errors import (
    BackupFailed,
    BuilderdError,
    EngineUnavailable,
    InvalidState,
    MachineFault,
    NameTaken,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    StoreUnavailable,
    ValidationFailed,
    machine_fault,
)
from builderd.core.ids import BackupId, BuilderId, DiskId, RestoreId, TenantId

#: Delay before the retry of a failed scheduled backup; doubled each time, at most the interval.
RETRY = timedelta(minutes=10)
#: Delay before the retry of a drill without a result, for example for lack of disk space.
DRILL_RETRY = timedelta(hours=6)
#: Longest interval; a larger one would exceed ``datetime.max``.
NEVER = timedelta(days=36_500)
#: Minimum retention of requested backups and of those taken before a restore.
KEEP_ASKED = timedelta(days=7)
#: A disk whose (sparse) files add up to more than this many times its size is not backed up.
SPARSE_FACTOR = 8
#: External causes: errors that are reported unchanged. All others become ``BackupFailed``.
EXTERNAL_CAUSES: dict[str, type[BuilderdError]] = {
    **{error.code: error for error in (NotFound, NameTaken, InvalidState, QuotaExceeded, NoCapacity)},
    **{error.code: error for error in (EngineUnavailable, MachineFault, StoreUnavailable)},
}


class BackupKind(StrEnum):
    #: Every ``backup_interval_hours``.
    SCHEDULED = "scheduled"
    #: When it was stopped for idleness.
    IDLE = "idle"
    #: The last one, before the disk was deleted with its builder.
    DELETED = "deleted"
    #: Requested by a caller.
    REQUESTED = "requested"
    #: What a restore replaced.
    BEFORE_RESTORE = "before_restore"


class BackupStatus(StrEnum):
    #: Its disk is about to be copied.
    PLANNED = "planned"
    #: The disk is copied; the copy waits to be archived.
    COPIED = "held"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Backup:
    """Backup of a disk. ``created_at`` is the moment of its content; ``copy`` the copied disk while that exists.

    ``snapshot`` is its id in the repository, None until it is done. ``size_bytes`` is the size of the files,
    ``added_bytes`` the growth of the repository.
    ``expires_at`` overrides the retention rules. ``owner`` is the service that works on it; ``retry_at`` the next
    attempt to back up a deleted builder's disk. ``drilled_at`` is the last restore drill, ``verified_at`` the last
    successful one, ``fault`` the damage that a drill or a check of the repository found. ``error`` is the reason of a
    failure, ``hindrance`` its external cause (``external_cause_of``).
    """

    id: BackupId
    tenant_id: TenantId
    builder_id: BuilderId
    builder_name: str
    version: int
    kind: BackupKind
    status: BackupStatus
    actor: str
    owner: str
    created_at: datetime
    copy: DiskId | None = None
    finished_at: datetime | None = None
    snapshot: str | None = None
    files: int = 0
    size_bytes: int = 0
    added_bytes: int = 0
    error: str = ""
    expires_at: datetime | None = None
    retry_at: datetime | None = None
    drilled_at: datetime | None = None
    verified_at: datetime | None = None
    fault: str = ""
    hindrance: Mapping[str, Any] | None = None

    @property
    def is_open(self) -> bool:
        """True until it is done or failed."""
        return self.status in (BackupStatus.PLANNED, BackupStatus.COPIED)

    def is_kept(self, now: datetime) -> bool:
        """True until it expires or is removed."""
        return self.expires_at is None or self.expires_at > now


class RestoreKind(StrEnum):
    #: Into the builder from which it was taken, in place of its present disk.
    SAME = "same"
    #: As a builder of its own.
    NEW = "new"
    #: Into a scratch sandbox, to see whether it could be restored.
    DRILL = "drill"
    #: Onto a new disk of its builder, whose own is gone.
    RECOVERY = "recovery"


class RestoreStatus(StrEnum):
    #: Asked for; nothing was done yet, or it is done again from the start.
    PLANNED = "planned"
    #: The files are on ``disk`` and were found to be those of the backup.
    FILLED = "filled"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Restore:
    """Restore of a backup. ``builder_id`` is the builder to restore or whose backup is drilled; ``name`` a new one's.

    ``disk`` is made for it. ``safety`` is the backup of the builder's present files, taken first; ``made`` the new
    builder, ``number`` the version that runs on the restored disk. ``error`` is the reason of a failure or of giving
    up, ``hindrance`` its external cause (``external_cause_of``).
    """

    id: RestoreId
    tenant_id: TenantId
    builder_id: BuilderId
    backup_id: BackupId
    kind: RestoreKind
    status: RestoreStatus
    actor: str
    owner: str
    created_at: datetime
    disk: DiskId
    name: str = ""
    safety: BackupId | None = None
    made: BuilderId | None = None
    number: int | None = None
    finished_at: datetime | None = None
    error: str = ""
    hindrance: Mapping[str, Any] | None = None

    @property
    def is_open(self) -> bool:
        """True until it is done or failed."""
        return self.status in (RestoreStatus.PLANNED, RestoreStatus.FILLED)


def external_cause_of(error: Exception) -> Mapping[str, Any] | None:
    """Return code, data and retry_after of an external cause, to be stored; None for any other error."""
    error = machine_fault(error) or error
    if isinstance(error, ValidationFailed):
        return {"code": error.code, "errors": error.errors}
    if not isinstance(error, BuilderdError) or error.code not in EXTERNAL_CAUSES:
        return None
    return {"code": error.code, "data": error.data, "retry_after": error.retry_after}


def failure_of(failed: Backup | Restore) -> BuilderdError:
    """Rebuild the error that a backup or a restore failed with."""
    kept = failed.hindrance
    if kept is None:
        return BackupFailed(failed.error)
    if kept["code"] == ValidationFailed.code:
        return ValidationFailed(kept["errors"], failed.error)
    return EXTERNAL_CAUSES[kept["code"]](failed.error, data=kept["data"], retry_after=kept["retry_after"])


@dataclass(frozen=True, slots=True)
class BackupCheck:
    """Time at which the schedule looks at a builder again.

    None: not before its backups, restores or interval change, or it has a disk.

    ``drill_base_at`` is since when its backups are untried: a drill is due ``drill_every`` later.
    """

    check_at: datetime | None
    drill_base_at: datetime | None


@dataclass(frozen=True, slots=True)
class BackupKey:
    """Sealed key of a tenant's backup repository, and times of its maintenance.

    ``forgotten_at`` is when a snapshot was last removed; ``fault`` the damage that was found and is not repaired, or
    empty: no backup is saved until then.
    """

    tenant_id: TenantId
    sealed: bytes
    created_at: datetime
    checked_at: datetime
    pruned_at: datetime
    forgotten_at: datetime | None = None
    fault: str = ""

    @property
    def associated_data(self) -> str:
        """Associated data of the sealed key."""
        return key_associated_data(self.tenant_id)


def key_associated_data(tenant_id: TenantId) -> str:
    """Return the associated data that the vault binds a tenant's repository key to."""
    return f"backups/{tenant_id}"


@dataclass(frozen=True, slots=True)
class Retention:
    """Retention: the number of hours, days and weeks with a backup whose newest backup is kept."""

    hourly: int = 24
    daily: int = 7
    weekly: int = 4


def surplus(backups: Iterable[Backup], retention: Retention, now: datetime) -> Sequence[Backup]:
    """Return the finished backups of one builder that no rule keeps; the newest one is always kept."""
    done = sorted((b for b in backups if b.status is BackupStatus.DONE), key=lambda b: b.created_at, reverse=True)
    kept = {b.id for b in done[:1]}
    asked = (BackupKind.REQUESTED, BackupKind.BEFORE_RESTORE)
    kept |= {b.id for b in done if b.kind in asked and b.created_at > now - KEEP_ASKED}
    spans: tuple[tuple[int, Callable[[datetime], object]], ...] = (
        (retention.hourly, lambda at: (at.date(), at.hour)),
        (retention.daily, lambda at: at.date()),
        (retention.weekly, lambda at: at.isocalendar()[:2]),
    )
    for count, span in spans:
        newest: dict[object, BackupId] = {}
        for backup in done:
            newest.setdefault(span(backup.created_at), backup.id)
        kept |= set(list(newest.values())[:count])
    return [b for b in done if b.id not in kept and b.expires_at is None]


def due_at(interval_hours: int, newest: Backup | None, failures: int, since: datetime) -> datetime:
    """Return the time of the next scheduled backup.

    ``newest`` is the last attempt, ``failures`` the number of failures in a row, ``since`` when the builder was made.
    """
    interval = min(timedelta(hours=interval_hours), NEVER)
    if newest is None:
        return since + interval
    if not failures:
        return newest.created_at + interval
    doubled: int = 2 ** min(failures - 1, 10)
    return newest.created_at + min(RETRY * doubled, interval)


@dataclass(frozen=True, slots=True)
class BackupRules:
    """Operator's settings for backups. Each check reads ``check_percent`` % of the data."""

    retention: Retention = Retention()
    keep_deleted: timedelta = timedelta(days=7)
    drill_every: timedelta = timedelta(days=7)
    check_every: timedelta = timedelta(days=7)
    check_percent: float = 5
    prune_every: timedelta = timedelta(days=1)
