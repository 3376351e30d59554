"""An archive in memory, of the fake engine's disks.

``fail_next`` makes a method raise, ``damage`` spoils a snapshot.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from builderd.adapters.fakes.engine import FakeEngine
from builderd.domain.errors import BackupFailed, BuilderdError
from builderd.domain.ids import BackupId, BuilderId, DiskId, TenantId
from builderd.ports.backup_repository import Damaged, Kept, Repository, Restored, Saved, Share


@dataclass(slots=True)
class FakeSnapshot:
    backup: BackupId
    builder: BuilderId
    files: dict[str, bytes]
    digest: str
    kept: Kept


@dataclass(slots=True)
class FakeRepository:
    key: bytes
    snapshots: dict[str, FakeSnapshot] = field(default_factory=dict)


class FakeArchive:
    """Implements ``ports.archive.Archive``."""

    def __init__(self, engine: FakeEngine) -> None:
        self.repositories: dict[TenantId, FakeRepository] = {}
        self.listed: defaultdict[TenantId, set[str]] = defaultdict(set)
        self.calls: list[str] = []
        self._engine = engine
        self._failures: defaultdict[str, deque[BuilderdError]] = defaultdict(deque)

    # Controls

    def fail_next(self, method: str, *errors: BuilderdError) -> None:
        self._failures[method].extend(errors)

    def damage(self, snapshot: str) -> None:
        """Let it give back something else than what was saved."""
        for repository in self.repositories.values():
            if snapshot in repository.snapshots:
                repository.snapshots[snapshot].files["damaged"] = b"?"

    # The port

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
        self._called("save")
        self.listed[repository.tenant_id].add(builder)
        files = dict(self._engine.disks[disk].files)
        size = sum(map(len, files.values()))
        if size > limit_bytes:
            raise BackupFailed("The files claim to hold far more than the disk's size.")
        if repository.is_new:
            self.repositories.setdefault(repository.tenant_id, FakeRepository(repository.key))
        kept = self._open(repository)
        known = {content for one in kept.snapshots.values() for content in one.files.values()}
        added = sum(len(content) for content in set(files.values()) - known)
        snapshot, digest = secrets.token_hex(32), _digest(files)
        saved = Saved(snapshot, digest, len(files), size, added)
        known_as = Kept(backup, builder, datetime.now(UTC), version, saved)
        kept.snapshots[snapshot] = FakeSnapshot(backup, builder, files, digest, known_as)
        told(1.0)
        return saved

    async def restore(self, repository: Repository, snapshot: str, disk: DiskId, told: Share) -> Restored:
        self._called("restore")
        kept = self._open(repository).snapshots.get(snapshot)
        if kept is None:
            raise Damaged("There is no such snapshot.")
        self._engine.disks[disk].files = dict(kept.files)
        told(1.0)
        faults = () if _digest(kept.files) == kept.digest else ("not in the backup: 'damaged'",)
        return Restored(kept.digest, len(kept.files), sum(map(len, kept.files.values())), faults)

    async def forget(self, repository: Repository, snapshots: Sequence[str]) -> None:
        self._called("forget")
        if self._has_none_yet(repository):
            return
        kept = self._open(repository)
        for snapshot in snapshots:
            kept.snapshots.pop(snapshot, None)

    async def prune(self, repository: Repository) -> None:
        self._called("prune")
        if not self._has_none_yet(repository):
            self._open(repository)

    async def saved(self, repository: Repository) -> Mapping[str, Kept]:
        self._called("saved")
        if self._has_none_yet(repository):
            return {}
        snapshots = self._open(repository).snapshots
        return {name: one.kept for name, one in snapshots.items()}

    async def lists(self) -> Mapping[TenantId, Collection[str]]:
        return {tenant: set(names) for tenant, names in self.listed.items()}

    async def drop_list(self, tenant: TenantId, name: str) -> None:
        self.listed[tenant].discard(name)

    async def check(self, repository: Repository, percent: float) -> None:
        self._called("check")
        if any(_digest(one.files) != one.digest for one in self._open(repository).snapshots.values()):
            raise BackupFailed("The repository is damaged.")

    def _has_none_yet(self, repository: Repository) -> bool:
        return repository.is_new and repository.tenant_id not in self.repositories

    def _open(self, repository: Repository) -> FakeRepository:
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
