"""Backup repositories: encrypted, one for each tenant, apart from the disks that are backed up.

Disks are named by id, not by path; the adapter reaches them through the engine. All methods raise ``BackupFailed`` with
the reason, and the engine's errors. Callers run one call at a time on one repository.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from builderd.core.errors import BackupFailed
from builderd.core.ids import BackupId, BuilderId, DiskId, TenantId


class RepositoryDamaged(BackupFailed):
    """The repository is reachable, but data in it is damaged or missing: ``repair`` comes before the next ``save``."""


class SnapshotDamaged(RepositoryDamaged):
    """The repository is reachable, but the snapshot is damaged or missing."""


#: Called with the share that is done, from 0 to 1; must not block.
OnProgress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class TenantRepository:
    """A tenant's repository and the key that encrypts it.

    ``is_new``: no backup in it is recorded, so ``save`` creates a missing repository, and until then it is empty.
    Otherwise a missing repository was lost or its disk is not mounted; a new one would hide that, so every method
    fails.
    """

    tenant_id: TenantId
    key: bytes
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """A backup to make of ``disk``. ``limit_bytes`` limits the sum of the file sizes; ``version`` 0 is unknown."""

    backup: BackupId
    builder: BuilderId
    disk: DiskId
    limit_bytes: int
    version: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotSummary:
    """Contents of a snapshot. ``snapshot`` is its id, ``added_bytes`` the growth of the repository."""

    snapshot: str
    files: int
    size_bytes: int
    added_bytes: int


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot as the repository itself records it: ``at`` is its time, ``version`` 0 where unknown."""

    backup: BackupId
    builder: BuilderId
    at: datetime
    version: int
    summary: SnapshotSummary


class BackupRepository(Protocol):
    async def save(
        self, repository: TenantRepository, request: SaveRequest, on_progress: OnProgress
    ) -> SnapshotSummary:
        """Save all files of a disk, which must not change meanwhile. Each call makes another snapshot.

        All or nothing: an unreadable file, or files larger than ``limit_bytes`` together, fail the call. Content that
        the repository has is not stored again, also where it is damaged and was not repaired. Raises
        ``RepositoryDamaged`` if it meets damage.
        """

    async def restore(self, repository: TenantRepository, snapshot: str, disk: DiskId, on_progress: OnProgress) -> None:
        """Restore a snapshot to an empty disk, and read every file back to verify it.

        Raises ``SnapshotDamaged`` if the repository answers with damage, or the disk has other content.
        """

    async def forget(self, repository: TenantRepository, snapshots: Sequence[str]) -> None:
        """Remove snapshots; ``prune`` frees their space. Idempotent."""

    async def prune(self, repository: TenantRepository) -> None:
        """Free the space that no snapshot needs."""

    async def snapshots(self, repository: TenantRepository) -> Mapping[str, SnapshotRecord]:
        """Return all snapshots by id; none for a new repository."""

    async def check(self, repository: TenantRepository, percent: float) -> Collection[str]:
        """Check the whole structure and ``percent`` of the data, another random part each time.

        Return the snapshots that lack data which a repair found lost. Raises ``RepositoryDamaged`` for other damage.
        """

    async def repair(self, repository: TenantRepository) -> None:
        """Read all data and give up what is damaged, so that later calls of ``save`` store it again.

        Snapshots stay: those that need lost data are incomplete until a backup stores the same data. Idempotent.
        """
