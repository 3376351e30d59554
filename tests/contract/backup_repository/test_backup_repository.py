"""Behaviour of every backup repository, the fake included."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from tests.contract.backup_repository.conftest import Scene

from builderd.backups.port import (
    RepositoryDamaged,
    SaveRequest,
    SnapshotDamaged,
    SnapshotSummary,
    TenantRepository,
)
from builderd.core.errors import BackupFailed
from builderd.core.ids import BackupId, BuilderId, TenantId, new_id

LIMIT = 10_000_000


def _repository() -> TenantRepository:
    return TenantRepository(TenantId(new_id()), b"k" * 32)


def _ignore(_: float) -> None:
    """Ignore the progress."""


async def _save(
    scene: Scene, repository: TenantRepository, builder: BuilderId, **files: bytes
) -> tuple[BackupId, SnapshotSummary]:
    backup = BackupId(new_id())
    disk = await scene.disk(**files)
    return backup, await scene.backup_repository.save(repository, SaveRequest(backup, builder, disk, LIMIT), _ignore)


async def test_each_backup_restores_its_own_state_to_another_disk(scene: Scene) -> None:
    repository, builder, shares = _repository(), BuilderId(new_id()), list[float]()
    files = {"a.txt": b"before", "b.bin": bytes(i * i % 251 for i in range(500_000))}
    disk, other = await scene.disk(**files), await scene.disk()

    async def save() -> SnapshotSummary:
        request = SaveRequest(BackupId(new_id()), builder, disk, LIMIT)
        return await scene.backup_repository.save(repository, request, shares.append)

    first = await save()
    assert (first.files, first.size_bytes) == (2, 500_006)
    scene.write(disk, "a.txt", b"after")
    second = await save()
    assert 0 < second.added_bytes < first.added_bytes, "the large file is stored once"
    await scene.backup_repository.restore(repository, first.snapshot, other, shares.append)
    assert scene.read(other) == files
    assert all(0 <= share <= 1 for share in shares)


async def test_snapshots_are_listed_until_they_are_forgotten(scene: Scene) -> None:
    repository, builder = scene.repository(), BuilderId(new_id())
    assert await scene.backup_repository.snapshots(repository) == {}
    backup, saved = await _save(scene, repository, builder, note=b"1")
    other, second = await _save(scene, repository, BuilderId(new_id()), note=b"2")
    found = await scene.backup_repository.snapshots(repository)
    assert {name: one.backup for name, one in found.items()} == {saved.snapshot: backup, second.snapshot: other}
    kept = found[saved.snapshot]
    assert (kept.builder, kept.version, kept.summary) == (builder, 0, saved)

    wrong = TenantRepository(repository.tenant_id, b"w" * 32)
    with pytest.raises(BackupFailed, match="key") as refused:
        await scene.backup_repository.restore(wrong, saved.snapshot, await scene.disk(), _ignore)
    assert not isinstance(refused.value, SnapshotDamaged)
    with pytest.raises(BackupFailed, match="key"):
        await scene.backup_repository.check(wrong, 100)

    for _ in range(2):
        await scene.backup_repository.forget(repository, [saved.snapshot])
    await scene.backup_repository.prune(repository)
    await scene.backup_repository.check(repository, 100)
    found = await scene.backup_repository.snapshots(repository)
    assert {name: one.backup for name, one in found.items()} == {second.snapshot: other}
    with pytest.raises(SnapshotDamaged):
        await scene.backup_repository.restore(repository, saved.snapshot, await scene.disk(), _ignore)


async def test_missing_repository_is_an_error(scene: Scene) -> None:
    lost = replace(_repository(), is_new=False)
    with pytest.raises(BackupFailed, match="no repository"):
        await scene.backup_repository.snapshots(lost)
    with pytest.raises(BackupFailed, match="no repository"):
        await scene.backup_repository.forget(lost, ["0" * 64])
    with pytest.raises(BackupFailed, match="no repository"):
        await scene.backup_repository.prune(lost)
    with pytest.raises(BackupFailed, match="no repository"):
        await scene.backup_repository.save(
            lost, SaveRequest(BackupId(new_id()), BuilderId(new_id()), await scene.disk(), LIMIT), _ignore
        )


async def test_missing_repository_without_backups_is_created(scene: Scene) -> None:
    repository = _repository()
    await scene.backup_repository.forget(repository, ["0" * 64])
    await scene.backup_repository.prune(repository)
    assert await scene.backup_repository.snapshots(repository) == {}


async def test_damage_is_repaired_and_the_next_backup_stores_again_what_is_lost(scene: Scene) -> None:
    repository, builder = scene.repository(), BuilderId(new_id())
    # It does not compress, so its pack is the largest.
    content = os.urandom(500_000)
    disk, other = await scene.disk(big=content, note=b"1"), await scene.disk()

    async def save() -> str:
        request = SaveRequest(BackupId(new_id()), builder, disk, LIMIT)
        return (await scene.backup_repository.save(repository, request, _ignore)).snapshot

    first = await save()
    scene.damage(first)
    relying = await save()
    for snapshot in (first, relying):
        with pytest.raises(SnapshotDamaged):
            await scene.backup_repository.restore(repository, snapshot, await scene.disk(), _ignore)
    with pytest.raises(RepositoryDamaged):
        await scene.backup_repository.check(repository, 100)
    for _ in range(2):
        await scene.backup_repository.repair(repository)
    assert set(await scene.backup_repository.check(repository, 100)) == {first, relying}
    with pytest.raises(SnapshotDamaged):
        await scene.backup_repository.restore(repository, first, await scene.disk(), _ignore)
    whole = await save()
    await scene.backup_repository.restore(repository, whole, other, _ignore)
    assert scene.read(other) == {"big": content, "note": b"1"}
    assert not await scene.backup_repository.check(repository, 100), "the same data makes the earlier ones whole too"


async def test_restore_over_the_size_limit_is_refused(scene: Scene) -> None:
    disk = await scene.disk(big=b"x" * 1000)
    with pytest.raises(BackupFailed, match="claim"):
        await scene.backup_repository.save(
            _repository(), SaveRequest(BackupId(new_id()), BuilderId(new_id()), disk, 999), _ignore
        )
