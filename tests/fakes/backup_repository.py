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

from builderd.domain.errors import BackupFailed, BuilderdError
from builderd.domain.ids import DiskId, TenantId
from builderd.ports.backup_repository import (
    OnProgress,
    RestoreReport,
    SaveRequest,
    SnapshotDamaged,
    SnapshotRecord,
    SnapshotSummary,
    TenantRepository,
)


@dataclass(slots=True)
class FakeSnapshot:
    files: dict[str, bytes]
    digest: str
    record: SnapshotRecord


@dataclass(slots=True)
class FakeRepository:
    key: bytes
    snapshots: dict[str, FakeSnapshot] = field(default_factory=dict)


class FakeBackupRepository:
    """Implements ``ports.backup_repository.BackupRepository``."""

    def __init__(self, engine: FakeEngine) -> None:
        self.repositories: dict[TenantId, FakeRepository] = {}
        self.manifest_names: defaultdict[TenantId, set[str]] = defaultdict(set)
        self.calls: list[str] = []
        self._engine = engine
        self._failures: defaultdict[str, deque[BuilderdError]] = defaultdict(deque)

    # Controls

    def fail_next(self, method: str, *errors: BuilderdError) -> None:
        self._failures[method].extend(errors)

    def damage(self, snapshot: str) -> None:
        """Corrupt a snapshot: a restore returns other files than were saved."""
        for repository in self.repositories.values():
            if snapshot in repository.snapshots:
                repository.snapshots[snapshot].files["damaged"] = b"?"

    # The port

    async def save(
        self, repository: TenantRepository, request: SaveRequest, on_progress: OnProgress
    ) -> SnapshotSummary:
        self._called("save")
        self.manifest_names[repository.tenant_id].add(request.builder)
        files = dict(self._engine.disks[request.disk].files)
        size = sum(map(len, files.values()))
        if size > request.limit_bytes:
            raise BackupFailed("The files claim to hold far more than the disk's size.")
        if repository.is_new:
            self.repositories.setdefault(repository.tenant_id, FakeRepository(repository.key))
        opened = self._open(repository)
        known = {content for one in opened.snapshots.values() for content in one.files.values()}
        added = sum(len(content) for content in set(files.values()) - known)
        snapshot, digest = secrets.token_hex(32), _digest(files)
        summary = SnapshotSummary(snapshot, digest, len(files), size, added)
        record = SnapshotRecord(request.backup, request.builder, datetime.now(UTC), request.version, summary)
        opened.snapshots[snapshot] = FakeSnapshot(files, digest, record)
        on_progress(1.0)
        return summary

    async def restore(
        self, repository: TenantRepository, snapshot: str, disk: DiskId, on_progress: OnProgress
    ) -> RestoreReport:
        self._called("restore")
        kept = self._open(repository).snapshots.get(snapshot)
        if kept is None:
            raise SnapshotDamaged("There is no such snapshot.")
        self._engine.disks[disk].files = dict(kept.files)
        on_progress(1.0)
        differences = () if _digest(kept.files) == kept.digest else ("not in the backup: 'damaged'",)
        return RestoreReport(kept.digest, len(kept.files), sum(map(len, kept.files.values())), differences)

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

    async def manifests(self) -> Mapping[TenantId, Collection[str]]:
        return {tenant: set(names) for tenant, names in self.manifest_names.items()}

    async def delete_manifest(self, tenant: TenantId, name: str) -> None:
        self.manifest_names[tenant].discard(name)

    async def check(self, repository: TenantRepository, percent: float) -> None:
        self._called("check")
        if any(_digest(one.files) != one.digest for one in self._open(repository).snapshots.values()):
            raise BackupFailed("The repository is damaged.")

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


def _digest(files: Mapping[str, bytes]) -> str:
    listed = [(name, hashlib.sha256(content).hexdigest()) for name, content in sorted(files.items())]
    return hashlib.sha256(repr(listed).encode()).hexdigest()
