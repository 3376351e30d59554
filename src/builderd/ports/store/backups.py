"""Backups, restores and the keys of backup repositories in the store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.backups import Backup, BackupCheck, BackupKey, BackupStatus, Restore
from builderd.domain.ids import BackupId, BuilderId, RestoreId, TenantId


class Backups(Protocol):
    def add(self, backup: Backup) -> None: ...
    def get(self, backup: BackupId) -> Backup | None: ...
    def save(self, backup: Backup) -> None:
        """Save it. Raises ``LookupError`` if it was deleted."""

    def delete(self, backup: BackupId) -> None:
        """Delete it with its restores. Idempotent."""

    def of_builder(self, builder: BuilderId) -> Sequence[Backup]:
        """Return the builder's backups, newest first."""

    def of_builders(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, Sequence[Backup]]:
        """Return the backups of each of these builders, newest first."""

    def of_tenant(self, tenant: TenantId) -> Sequence[Backup]:
        """Return the tenant's backups, newest first."""

    def open(self, owner: str) -> Sequence[Backup]:
        """Return the owner's backups that are to be taken or saved, or have a copy to delete, oldest first."""

    def newest_of(
        self, builders: Sequence[BuilderId], status: BackupStatus | None = None
    ) -> Mapping[BuilderId, Backup]:
        """Return each builder's newest backup, or its newest of this status; builders without one are left out."""

    def expired(self, now: datetime) -> Sequence[Backup]:
        """Return those that have expired."""

    def builders(self, after: str, limit: int) -> Sequence[BuilderId]:
        """Return builders that have backups, in the order of their ids, so many after the given id ("": the first)."""

    def among(self, builders: Sequence[BuilderId]) -> Collection[BuilderId]:
        """Return those of these builders that have backups."""

    def has_done(self, tenant: TenantId, now: datetime) -> bool:
        """Return whether the tenant has a backup that is done and has not expired."""

    def count_failing(self) -> int:
        """Count the live builders with a backup interval whose newest backup failed."""

    def oldest_last_good(self) -> datetime | None:
        """Return the oldest among the newest done backups of each live builder with a backup interval."""

    def count_by_status(self) -> Mapping[BackupStatus, int]: ...
    def count_damaged(self) -> int:
        """Count the backups whose last drill failed."""


class Restores(Protocol):
    def add(self, restore: Restore) -> None: ...
    def get(self, restore: RestoreId) -> Restore | None: ...
    def save(self, restore: Restore) -> None:
        """Save it. Raises ``LookupError`` if it was deleted."""

    def open(self, owner: str) -> Sequence[Restore]:
        """Return the owner's restores that are not finished, oldest first."""

    def open_of(self, builder: BuilderId) -> Sequence[Restore]:
        """Return a builder's restores that are not finished, of any owner, oldest first."""

    def with_open(self, builders: Sequence[BuilderId]) -> Collection[BuilderId]:
        """Return those of these builders with a restore that is not finished."""

    def last_drills(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, datetime]:
        """Return when the newest drill of each builder was requested, finished or not, of a backup that still exists.

        Builders without one are left out.
        """


class BackupChecks(Protocol):
    """Times at which the schedule looks at builders again. A change of a builder's backups makes it due at once."""

    def due(self, now: datetime, tried_before: datetime | None, limit: int) -> Sequence[BuilderId]:
        """Return live builders with a backup interval that are due for a look, at most so many.

        ``tried_before``: those whose backups were last tried by a drill before are due as well; None: no drills. A unit
        of work that writes locks them, and leaves out those that another one works on.
        """

    def record(self, checks: Mapping[BuilderId, BackupCheck]) -> None:
        """Store when each builder, locked by ``due``, is to be looked at again."""


class BackupKeys(Protocol):
    def add(self, key: BackupKey) -> None:
        """Add it. Raises ``Conflict`` if the tenant has one."""

    def get(self, tenant: TenantId, *, lock: bool = False) -> BackupKey | None:
        """Return it. ``lock`` makes other writers of this row wait until the unit of work ends."""

    def lacking(self) -> Sequence[TenantId]:
        """Return the tenants without a key."""

    def all(self) -> Sequence[BackupKey]: ...
    def save(self, key: BackupKey) -> None: ...
