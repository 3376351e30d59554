"""Backups, restores and the keys of backup repositories in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.backups import Backup, BackupKey, BackupStatus, Restore
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

    def builders(self) -> Sequence[BuilderId]:
        """Return the builders that have backups."""

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

    def last_drill(self, builder: BuilderId) -> Restore | None:
        """Return the newest drill, finished or not, of a backup that still exists."""


class BackupKeys(Protocol):
    def add(self, key: BackupKey) -> None:
        """Add it. Raises ``Conflict`` if the tenant has one."""

    def get(self, tenant: TenantId, *, lock: bool = False) -> BackupKey | None:
        """Return it. ``lock`` makes other writers of this row wait until the unit of work ends."""

    def lacking(self) -> Sequence[TenantId]:
        """Return the tenants without a key."""

    def all(self) -> Sequence[BackupKey]: ...
    def save(self, key: BackupKey) -> None: ...
