"""The archive: where backups are kept, encrypted and apart from the disks they were taken of.

Disks are named, not paths: how an archive comes at a disk is a matter between it and the engine.
All methods raise ``BackupFailed`` when the archive does not do it, and say why; they raise what the engine raises.
One call at a time works on one repository.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from builderd.domain.errors import BackupFailed
from builderd.domain.ids import BackupId, BuilderId, DiskId, TenantId


class Damaged(BackupFailed):
    """The archive answers, and what was saved does not come back as it was."""


#: Told how much is done, from 0 to 1; must not block.
Share = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Repository:
    """A tenant's own, which nothing but its key opens.

    ``is_new``: nothing is known to be in it that is still wanted, so it may be made, and until then counts as empty.
    Otherwise one that is not there was lost, or lies on a disk that is not mounted, and another in its place would hide
    that: every method fails.
    """

    tenant_id: TenantId
    key: bytes
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class Saved:
    """``snapshot`` names it in the archive; ``digest`` is the sha256 of the list of all files with their hashes."""

    snapshot: str
    digest: str
    files: int
    size_bytes: int
    added_bytes: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot as the archive itself remembers it: made ``at`` this time, of this ``version`` (0: not known)."""

    backup: BackupId
    builder: BuilderId
    at: datetime
    version: int
    saved: Saved


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put on the disk, after every file was read back and compared with the list saved with it.

    ``digest`` is that list's; ``faults`` names the first files that differ, are missing or were never there.
    """

    digest: str
    files: int
    size_bytes: int
    faults: tuple[str, ...] = ()


class Archive(Protocol):
    async def save(
        self,
        repository: Repository,
        backup: BackupId,
        builder: BuilderId,
        disk: DiskId,
        limit_bytes: int,
        told: Share,
        version: int = 0,
    ) -> Saved:
        """Keep what is on the disk, which must not change meanwhile. Doing it again makes another snapshot.

        Everything or nothing: a file that cannot be read, or files that claim more than ``limit_bytes``, fail it.
        """

    async def restore(self, repository: Repository, snapshot: str, disk: DiskId, told: Share) -> Restored:
        """Put what was saved on an empty disk. Raises ``Damaged`` where the archive answers, and it is not whole."""

    async def forget(self, repository: Repository, snapshots: Sequence[str]) -> None:
        """These are kept no longer; their space comes back with ``prune``. Idempotent."""

    async def prune(self, repository: Repository) -> None:
        """Give back the space that no snapshot needs."""

    async def saved(self, repository: Repository) -> Mapping[str, Kept]:
        """The snapshots that are kept; none where nothing was ever saved."""

    async def lists(self) -> Mapping[TenantId, Collection[str]]:
        """What it has lists of files of beside the repositories, by tenant: builders, and disks that are restored to.

        A disk's is there until the restore ends, unless the service ends before that.
        """

    async def drop_list(self, tenant: TenantId, name: str) -> None:
        """Remove one; the next backup of that builder reads all files again. Idempotent."""

    async def check(self, repository: Repository, percent: float) -> None:
        """Look at the whole structure, and read this part of the data, another one each time."""
