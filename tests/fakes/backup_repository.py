"""A backup repository in memory, for the disks of the fake engine.

``fail_next`` makes a method raise, ``damage`` corrupts a snapshot.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.fakes.engine import FakeEngine

from builderd.backups.port import (
    OnProgress,
    RepositoryDamaged,
    SaveRequest,
    SnapshotDamaged,
    SnapshotRecord,
    SnapshotSummary,
    TenantRepository,
)
from builderd.core.errors import BackupFailed, BuilderdError
from builderd.core.ids import DiskId, TenantId


@dataclass(slots=True)
class FakeSnapshot:
    """``blobs`` are those of the repository: files of all snapshots with the same content are stored once."""

    hashes: Mapping[str, str]
    record: SnapshotRecord
    blobs: dict[str, bytes]

    @property
    def files(self) -> dict[str, bytes]:
        return {name: self.blobs[hashed] for name, hashed in self.hashes.items()}

    @property
    def is_incomplete(self) -> bool:
        return any(hashed not in self.blobs for hashed in self.hashes.values())


@dataclass(slots=True)
class FakeRepository:
    key: bytes
    snapshots: dict[str, FakeSnapshot] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    @property
    def damaged(self) -> set[str]:
        return {hashed for hashed, content in self.blobs.items() if _hash(content) != hashed}


class FakeBackupRepository:
    """Implements ``ports.backup_repository.BackupRepository``."""

    def __init__(self, engine: FakeEngine) -> None:
        self.repositories: dict[TenantId, FakeRepository] = {}
        self.calls: list[str] = []
        #: Snapshots of which a restore finds other files on the disk than were saved.
        self.altered: set[str] = set()
        self._engine = engine
        self._failures: defaultdict[str, deque[BuilderdError]] = defaultdict(deque)

    # Controls

    def fail_next(self, method: str, *errors: BuilderdError) -> None:
        self._failures[method].extend(errors)

    def damage(self, snapshot: str) -> None:
        """Corrupt the stored content of a snapshot's files, also for other snapshots that have the same."""
        for repository in self.repositories.values():
            if (kept := repository.snapshots.get(snapshot)) is not None:
                repository.blobs.update(dict.fromkeys(kept.hashes.values(), b"?"))

    # The port

    async def save(
        self, repository: TenantRepository, request: SaveRequest, on_progress: OnProgress
    ) -> SnapshotSummary:
        self._called("save")
        files = dict(self._engine.known_disks[request.disk].files)
        size = sum(map(len, files.values()))
        if size > request.limit_bytes:
            raise BackupFailed("The files claim to have far more than the disk's size.")
        if repository.is_new:
            self.repositories.setdefault(repository.tenant_id, FakeRepository(repository.key))
        opened = self._open(repository)
        hashes = {name: _hash(content) for name, content in files.items()}
        new = {hashes[name]: content for name, content in files.items() if hashes[name] not in opened.blobs}
        opened.blobs.update(new)
        added = sum(map(len, new.values()))
        snapshot = secrets.token_hex(32)
        summary = SnapshotSummary(snapshot, len(files), size, added)
        record = SnapshotRecord(request.backup, request.builder, datetime.now(UTC), request.version, summary)
        opened.snapshots[snapshot] = FakeSnapshot(hashes, record, opened.blobs)
        on_progress(1.0)
        return summary

    async def restore(self, repository: TenantRepository, snapshot: str, disk: DiskId, on_progress: OnProgress) -> None:
        self._called("restore")
        opened = self._open(repository)
        kept = opened.snapshots.get(snapshot)
        if kept is None:
            raise SnapshotDamaged("There is no such snapshot.")
        if kept.is_incomplete or not opened.damaged.isdisjoint(kept.hashes.values()):
            raise SnapshotDamaged("The repository is damaged.")
        if snapshot in self.altered:
            raise SnapshotDamaged("The restored files are not those of the backup.")
        self._engine.known_disks[disk].files = kept.files
        on_progress(1.0)

    async def forget(self, repository: TenantRepository, snapshots: Sequence[str]) -> None:
        self._called("forget")
        if self._is_missing_and_new(repository):
            return
        kept = self._open(repository)
        for snapshot in snapshots:
            kept.snapshots.pop(snapshot, None)

    async def prune(self, repository: TenantRepository) -> None:
        self._called("prune")
        if not self._is_missing_and_new(repository):
            self._open(repository)

    async def snapshots(self, repository: TenantRepository) -> Mapping[str, SnapshotRecord]:
        self._called("snapshots")
        if self._is_missing_and_new(repository):
            return {}
        snapshots = self._open(repository).snapshots
        return {name: one.record for name, one in snapshots.items()}

    async def check(self, repository: TenantRepository, percent: float) -> Collection[str]:
        self._called("check")
        if self._is_missing_and_new(repository):
            return ()
        opened = self._open(repository)
        if opened.damaged:
            raise RepositoryDamaged("The repository is damaged.")
        return [name for name, one in opened.snapshots.items() if one.is_incomplete]

    async def repair(self, repository: TenantRepository) -> None:
        self._called("repair")
        if self._is_missing_and_new(repository):
            return
        opened = self._open(repository)
        for hashed in opened.damaged:
            del opened.blobs[hashed]

    def _is_missing_and_new(self, repository: TenantRepository) -> bool:
        return repository.is_new and repository.tenant_id not in self.repositories

    def _open(self, repository: TenantRepository) -> FakeRepository:
        kept = self.repositories.get(repository.tenant_id)
        if kept is None:
            raise BackupFailed("There is no repository of backups.")
        if kept.key != repository.key:
            raise BackupFailed("The repository does not open with its key.")
        return kept

    def _called(self, method: str) -> None:
        self.calls.append(method)
        if self._failures[method]:
            raise self._failures[method].popleft()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
