"""Upkeep: retention, pruning, checks."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.unit.backups.conftest import HOUR, Scene

from builderd.backups import service as backups
from builderd.backups import upkeep
from builderd.backups.model import BackupStatus, Retention, failure_of
from builderd.backups.port import SaveRequest, TenantRepository
from builderd.builders.model import Builder
from builderd.core.errors import RETRY_AFTER, BackupFailed, MachineFault, helper_died
from builderd.core.ids import BackupId, new_id


async def _kept(scene: Scene, builder: Builder) -> list[str]:
    return sorted(scene.backup_repository.repositories[builder.tenant_id].snapshots)


async def test_unretained_backups_are_removed_everywhere(scene: Scene) -> None:
    scene = scene.with_rules(retention=Retention(hourly=2, daily=1, weekly=1), drill_every=timedelta(0))
    builder = await scene.world.create(backup_interval_hours=1)
    for _ in range(5):
        await scene.pass_time(1.01 * HOUR)
    await upkeep.clean_up(scene.schedule.context)
    found = await scene.of(builder)
    assert len(found) == 2
    assert await _kept(scene, builder) == sorted(one.snapshot or "" for one in found)
    assert "prune" not in scene.backup_repository.calls
    await scene.pass_time(25 * HOUR)
    await upkeep.clean_up(scene.schedule.context)
    assert scene.backup_repository.calls.count("prune") == 1
    await upkeep.clean_up(scene.schedule.context)
    assert scene.backup_repository.calls.count("prune") == 1


async def test_a_removed_backup_goes_and_an_unreachable_archive_is_tried_later(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    await scene.world.application.store.write(lambda uow: backups.remove(uow, backup))
    scene.backup_repository.fail_next("forget", BackupFailed("not now"))
    await upkeep.clean_up(scene.schedule.context)
    assert len(await scene.of(builder)) == 1
    await upkeep.clean_up(scene.schedule.context)
    assert await scene.of(builder) == []
    assert await _kept(scene, builder) == []


async def test_a_clock_set_forward_and_back_deletes_no_backup(scene: Scene) -> None:
    scene = scene.with_rules(retention=Retention(hourly=2, daily=1, weekly=1), drill_every=timedelta(0))
    builder = await scene.world.create()
    backup = await scene.take(builder)
    await scene.world.application.store.write(
        lambda uow: backups.delete_builder(
            uow, scene.world.application, scene.world.caller, builder.id, scene.world.clock.now(), purge=False
        )
    )
    scene.world.clock.jump(400 * 86_400)
    await upkeep.clean_up(scene.schedule.context)
    assert backup.snapshot in await _kept(scene, builder)
    scene.world.clock.set_back(400 * 86_400)
    scene.world.clock.move(2 * 86_400)
    await upkeep.clean_up(scene.schedule.context)
    assert backup.snapshot in await _kept(scene, builder)
    await scene.world.application.store.write(lambda uow: backups.remove(uow, backup))
    await upkeep.clean_up(scene.schedule.context)
    assert backup.snapshot not in await _kept(scene, builder)


async def test_unknown_snapshot_is_pruned(scene: Scene) -> None:
    builder = await scene.world.create()
    first = await scene.take(builder)
    second = await scene.take(builder)
    repository = await backups.repository(scene.world.application, builder.tenant_id)
    await scene.backup_repository.save(
        repository, SaveRequest(BackupId(new_id()), builder.id, builder.disk, 1 << 30), lambda _: None
    )
    await scene.world.application.store.write(lambda uow: backups.remove(uow, first))
    scene.world.clock.move(25 * 3600)
    await upkeep.clean_up(scene.schedule.context)
    assert await _kept(scene, builder) == [second.snapshot]


async def test_killed_backup_is_a_machine_fault(scene: Scene) -> None:
    builder = await scene.world.create()
    scene.backup_repository.fail_next("save", helper_died("restic", "was killed"))
    failed = await scene.take(builder)
    assert "restic was killed" in failed.error
    told = failure_of(failed)
    assert (type(told), told.retry_after) == (MachineFault, RETRY_AFTER)


async def test_a_key_that_the_vault_does_not_open_fails_the_backup_loudly(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.take(builder)
    key = await scene.world.read(lambda uow: uow.backup_keys.get(builder.tenant_id))
    assert key is not None
    assert isinstance(await backups.repository(scene.world.application, builder.tenant_id), TenantRepository)
    broken = replace(key, sealed=b"x" * len(key.sealed))
    await scene.world.application.store.write(lambda uow: uow.backup_keys.save(broken))
    failed = await scene.take(builder)
    assert failed.error
    assert (await scene.kinds(builder))[-1] == "backup.failed"


async def test_every_tenant_has_a_key_before_its_first_backup_and_nothing_is_checked_until_then(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.schedule.plan()
    (key,) = await scene.world.read(lambda uow: uow.backup_keys.all())
    assert key.tenant_id == builder.tenant_id
    scene.world.clock.move(8 * 24 * 3600)
    await upkeep.check(scene.schedule.context)
    assert "check" not in scene.backup_repository.calls
    await scene.take(builder)
    await upkeep.check(scene.schedule.context)
    assert "check" in scene.backup_repository.calls


async def test_missing_repository_is_not_recreated(scene: Scene) -> None:
    builder = await scene.world.create()
    good = await scene.take(builder)
    scene.backup_repository.repositories.clear()
    assert "no repository" in (await scene.take(builder)).error
    await upkeep.clean_up(scene.schedule.context)
    assert good in await scene.of(builder)


@pytest.mark.parametrize("tidied_first", [True, False])
async def test_repository_is_recreated_after_removing_its_backups(scene: Scene, tidied_first: bool) -> None:
    builder = await scene.world.create()
    lost = await scene.take(builder)
    scene.backup_repository.repositories.clear()
    app = scene.world.application
    await app.store.write(lambda uow: backups.remove(uow, lost))
    if tidied_first:
        await upkeep.clean_up(scene.schedule.context)
    again = await scene.take(builder)
    assert (again.status, again.error) == (BackupStatus.DONE, "")
    scene.world.clock.move(25 * 3600)
    await upkeep.clean_up(scene.schedule.context)
    assert await scene.of(builder) == [again]
    assert await _kept(scene, builder) == [again.snapshot]
