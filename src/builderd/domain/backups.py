"""Backups: copies of a builder's disk at one moment, kept apart from it. What is kept for how long is decided here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from builderd.domain.errors import (
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
)
from builderd.domain.ids import BackupId, BuilderId, DiskId, RestoreId, TenantId
from builderd.domain.machine_faults import machine_fault

#: After a failed backup, the next scheduled one is tried after so long, doubled each time, at most the interval.
RETRY = timedelta(minutes=10)
#: A drill that said nothing of the backup, such as for want of room, is held again after so long.
DRILL_RETRY = timedelta(hours=6)
#: No interval is longer: the largest number that is taken would lead beyond the last day of the calendar.
NEVER = timedelta(days=36_500)
#: What a person asked for, and what was there before a restore, stays at least so long.
KEEP_ASKED = timedelta(days=7)
#: Of a disk that claims to hold more bytes than so many times its size (by sparse files) no backup is made.
SPARSE_FACTOR = 8
#: What may hinder a backup or a restore that is no fault of it: told as it is. All else is a ``BackupFailed``.
EXTERNAL_CAUSES: dict[str, type[BuilderdError]] = {
    error.code: error
    for error in (
        NotFound,
        NameTaken,
        InvalidState,
        QuotaExceeded,
        NoCapacity,
        EngineUnavailable,
        MachineFault,
        StoreUnavailable,
    )
}


class BackupKind(StrEnum):
    #: Every ``backup_interval_hours``.
    SCHEDULED = "scheduled"
    #: When it was stopped because nobody used it.
    IDLE = "idle"
    #: The last one, before the disk was deleted with its builder.
    DELETED = "deleted"
    #: Somebody asked for it.
    REQUESTED = "requested"
    #: What a restore replaced.
    BEFORE_RESTORE = "before_restore"


class BackupStatus(StrEnum):
    #: Its disk is about to be copied.
    PLANNED = "planned"
    #: A copy of the disk is held and waits to be archived.
    HELD = "held"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Backup:
    """``created_at`` is the moment whose state it holds; ``copy`` the copied disk while that exists.

    ``snapshot`` names it in the archive and ``digest`` is the sha256 of its list of files with their hashes, both
    None until it is done. ``size_bytes`` is what the files hold, ``added_bytes`` what the archive grew by.
    ``expires_at`` is set when it is to go at a certain time, whatever the rules of retention say.
    ``owner`` is the service that works on it. Saving what a deleted builder left is tried again at ``retry_at``.
    ``drilled_at`` is when it was last restored to try it out, ``verified_at`` when it was found whole by that, and
    ``fault`` what the last trial found wrong with it. ``error`` is why it failed, ``hindrance`` the rest of that
    (``external_cause_of``).
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
    digest: str | None = None
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
        """Whether there is still something to do for it."""
        return self.status in (BackupStatus.PLANNED, BackupStatus.HELD)


class RestoreKind(StrEnum):
    #: Into the builder it was taken of, in place of what it has now.
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
    """``builder_id`` is the builder that gets (or, for a drill, lent) the backup; ``name`` that of a new one.

    ``disk`` is made for it. ``safety`` is the backup of what the builder had before, which comes first; ``made`` the
    new builder, and ``number`` that of the version with which the builder has it. ``error`` is why it failed, or why
    one that is open is to be given up, ``hindrance`` the rest of that (``external_cause_of``).
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
        """Whether there is still something to do for it."""
        return self.status in (RestoreStatus.PLANNED, RestoreStatus.FILLED)


def external_cause_of(error: Exception) -> Mapping[str, Any] | None:
    """What is kept of it beside its message, so that whoever waits is told the same; None for a fault of the backup."""
    error = machine_fault(error) or error
    if isinstance(error, ValidationFailed):
        return {"code": error.code, "errors": error.errors}
    if not isinstance(error, BuilderdError) or error.code not in EXTERNAL_CAUSES:
        return None
    return {"code": error.code, "data": error.data, "retry_after": error.retry_after}


def failure_of(failed: Backup | Restore) -> BuilderdError:
    """The error that it failed with, or is to be given up for."""
    kept = failed.hindrance
    if kept is None:
        return BackupFailed(failed.error)
    if kept["code"] == ValidationFailed.code:
        return ValidationFailed(kept["errors"], failed.error)
    return EXTERNAL_CAUSES[kept["code"]](failed.error, data=kept["data"], retry_after=kept["retry_after"])


@dataclass(frozen=True, slots=True)
class BackupKey:
    """A tenant's key of its repository, sealed, and when the repository was last looked after.

    ``forgotten_at`` is when something in it was last let go of; ``fault`` what the last check found.
    """

    tenant_id: TenantId
    sealed: bytes
    created_at: datetime
    checked_at: datetime
    pruned_at: datetime
    forgotten_at: datetime | None = None
    fault: str = ""

    @property
    def place(self) -> str:
        """What it is sealed for."""
        return key_associated_data(self.tenant_id)


def key_associated_data(tenant_id: TenantId) -> str:
    """The place of a tenant's key, towards the vault."""
    return f"backups/{tenant_id}"


@dataclass(frozen=True, slots=True)
class Retention:
    """So many of the newest hours, days and weeks in which there was a backup keep their newest one."""

    hourly: int = 24
    daily: int = 7
    weekly: int = 4


def surplus(backups: Iterable[Backup], retention: Retention, now: datetime) -> Sequence[Backup]:
    """The finished backups of one builder that no rule keeps; the newest one is always kept."""
    done = sorted((b for b in backups if b.status is BackupStatus.DONE), key=lambda b: b.created_at, reverse=True)
    kept = {b.id for b in done[:1]}
    kept |= {b.id for b in done if _was_asked(b) and b.created_at > now - KEEP_ASKED}
    for count, span in (
        (retention.hourly, _hour),
        (retention.daily, _day),
        (retention.weekly, _week),
    ):
        kept |= _newest_of_each(done, count, span)
    return [b for b in done if b.id not in kept and b.expires_at is None]


def _was_asked(backup: Backup) -> bool:
    return backup.kind in (BackupKind.REQUESTED, BackupKind.BEFORE_RESTORE)


def _newest_of_each(done: Sequence[Backup], count: int, span: Callable[[datetime], object]) -> set[BackupId]:
    newest: dict[object, BackupId] = {}
    for backup in done:
        newest.setdefault(span(backup.created_at), backup.id)
    return set(list(newest.values())[:count])


def _hour(at: datetime) -> object:
    return at.year, at.month, at.day, at.hour


def _day(at: datetime) -> object:
    return at.year, at.month, at.day


def _week(at: datetime) -> object:
    return at.isocalendar()[:2]


def due_at(interval_hours: int, newest: Backup | None, failures: int, since: datetime) -> datetime:
    """When the next scheduled backup is due.

    ``newest`` is the last that was tried, ``failures`` how many failed in a row, ``since`` when the builder was made.
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
    """What the operator wants. A share of ``check_percent`` of the data is read at each check."""

    retention: Retention = Retention()
    keep_deleted: timedelta = timedelta(days=7)
    drill_every: timedelta = timedelta(days=7)
    check_every: timedelta = timedelta(days=7)
    check_percent: float = 5
    prune_every: timedelta = timedelta(days=1)
