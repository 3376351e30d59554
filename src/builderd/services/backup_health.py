"""Health of the backups, in numbers that an operator can set alerts on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from builderd.domain.backups import BackupStatus
from builderd.store import UnitOfWork


@dataclass(frozen=True, slots=True)
class BackupHealth:
    """Backup counts: ``by_status`` counts the kept backups, and failed ones of the last seven days.

    ``failing`` are builders that want backups and whose last one failed, ``behind_seconds`` is the age of the oldest
    last good backup among builders that want some and have one, ``unproven`` are backups that lack data or
    failed their drill, ``damaged`` repositories that are damaged and not repaired yet.
    """

    by_status: Mapping[BackupStatus, int] = field(default_factory=dict)
    failing: int = 0
    behind_seconds: float = 0
    unproven: int = 0
    damaged: int = 0


def health(uow: UnitOfWork, now: datetime) -> BackupHealth:
    """Return the present backup health."""
    oldest = uow.backups.oldest_last_good() or now
    return BackupHealth(
        by_status=uow.backups.count_by_status(),
        failing=uow.backups.count_failing(),
        behind_seconds=max((now - oldest).total_seconds(), 0),
        unproven=uow.backups.count_damaged(),
        damaged=sum(bool(key.fault) for key in uow.backup_keys.all()),
    )
