"""Checks of repositories: damage marks them, is repaired, and keeps new backups away until then."""

from __future__ import annotations

import pytest
from tests.unit.backups.conftest import HOUR, Scene

from builderd.backups import restores, upkeep
from builderd.backups import service as backups
from builderd.backups.model import Backup, BackupKey, BackupStatus, RestoreStatus
from builderd.backups.port import RepositoryDamaged
from builderd.builders.model import Builder
from builderd.core.errors import (
    BackupFailed,
    BuilderdError,
    EngineUnavailable,
    NoCapacity,
    StoreUnavailable,
    helper_died,
)
from builderd.events.store import EventQuery


async def _key(scene: Scene, builder: Builder) -> BackupKey:
    key = await scene.world.read(lambda uow: uow.backup_keys.get(builder.tenant_id))
    assert key is not None
    return key


async def _restored(scene: Scene, backup: Backup, name: str) -> RestoreStatus:
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: restores.request_new(uow, app, scene.world.caller, backup, name, now))
    await scene.settle()
    return (await scene.restore(wanted)).status


async def _repository_events(scene: Scene, builder: Builder) -> list[str]:
    found = await scene.world.read(
        lambda uow: uow.events.following(builder.tenant_id, EventQuery(), after=0, limit=100)
    )
    return [one.type for one in found if one.type.startswith("backups.")]


async def test_backup_after_a_damaged_restore_can_be_restored(scene: Scene) -> None:
    builder = await scene.world.create()
    first = await scene.take(builder)
    scene.backup_repository.damage(first.snapshot or "")
    assert await _restored(scene, first, "lost") is RestoreStatus.FAILED
    assert scene.backup_repository.calls[-3:] == ["restore", "repair", "check"], "at once"
    assert (await scene.backup(first)).fault == upkeep.LOST
    assert await _repository_events(scene, builder) == ["backups.damaged", "backups.whole"]
    second = await scene.take(builder)
    assert second.status is BackupStatus.DONE
    assert await _restored(scene, second, "again") is RestoreStatus.DONE
    await upkeep.check_one(scene.schedule.context, builder.tenant_id)
    assert (await scene.backup(first)).fault == "", "the second has stored again what it lacked"
    assert await _restored(scene, first, "first") is RestoreStatus.DONE


async def test_no_backup_is_saved_in_a_damaged_repository_that_cannot_be_repaired(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    scene.backup_repository.damage(backup.snapshot or "")
    broken = BackupFailed("The disk of the repository cannot be written.")
    scene.backup_repository.fail_next("repair", broken, broken)
    await _restored(scene, backup, "lost")
    assert (await _key(scene, builder)).fault == broken.message
    health = await scene.world.read(lambda uow: backups.health(uow, scene.world.clock.now()))
    assert health.damaged == 1
    failed = await scene.take(builder)
    assert (failed.status, failed.error) == (BackupStatus.FAILED, broken.message)
    assert scene.backup_repository.calls.count("save") == 1
    assert (await scene.take(builder)).status is BackupStatus.DONE, "it was repaired first"
    assert await _repository_events(scene, builder) == ["backups.damaged", "backups.whole"]


async def test_damage_that_a_backup_meets_fails_it_and_is_repaired(scene: Scene) -> None:
    builder = await scene.world.create()
    first = await scene.take(builder)
    scene.backup_repository.damage(first.snapshot or "")
    scene.backup_repository.fail_next("save", RepositoryDamaged("tree could not be loaded"))
    assert "tree could not be loaded" in (await scene.take(builder)).error
    assert (await _key(scene, builder)).fault == ""
    assert await _restored(scene, await scene.take(builder), "again") is RestoreStatus.DONE


async def test_a_check_that_finds_damage_repairs_it(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    await upkeep.check(scene.schedule.context)
    assert "check" not in scene.backup_repository.calls
    scene.backup_repository.damage(backup.snapshot or "")
    scene.world.clock.move(7 * 86_400)
    await upkeep.check(scene.schedule.context)
    assert (await _key(scene, builder)).fault == ""
    assert (await scene.backup(backup)).fault == upkeep.LOST
    assert await _restored(scene, await scene.take(builder), "again") is RestoreStatus.DONE


async def test_a_service_killed_before_the_check_makes_it_after_its_start(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    scene.backup_repository.damage(backup.snapshot or "")
    context, damage = scene.schedule.context, RepositoryDamaged("ciphertext verification failed")
    await scene.world.application.store.write(lambda uow: upkeep.mark(uow, context, builder.tenant_id, damage))
    await upkeep.check(context)
    assert scene.backup_repository.calls[-2:] == ["repair", "check"]
    assert (await scene.backup(backup)).fault == upkeep.LOST


async def test_restore_of_a_backup_that_is_known_to_be_lost_starts_no_check(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    scene.backup_repository.damage(backup.snapshot or "")
    await _restored(scene, backup, "lost")
    await _restored(scene, backup, "lost-again")
    assert scene.backup_repository.calls.count("repair") == 1


async def test_a_builder_whose_last_backup_is_lost_gets_a_new_one_soon(scene: Scene) -> None:
    builder = await scene.world.create(backup_interval_hours=24)
    await scene.pass_time(24.1 * HOUR)
    (lost,) = await scene.of(builder)
    scene.backup_repository.damage(lost.snapshot or "")
    await _restored(scene, lost, "lost")
    await scene.pass_time(0.2 * HOUR)
    newest = (await scene.of(builder))[0]
    assert (newest.status, newest.fault) == (BackupStatus.DONE, "")
    assert newest.id != lost.id


async def test_a_database_that_does_not_answer_says_nothing_of_a_repository(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.take(builder)
    key = await scene.world.read(lambda uow: uow.backup_keys.get(builder.tenant_id))
    assert key is not None
    with scene.without_database("read"), pytest.raises(StoreUnavailable):
        await upkeep.check_one(scene.schedule.context, builder.tenant_id)
    assert await scene.world.read(lambda uow: uow.backup_keys.get(builder.tenant_id)) == key
    key = await scene.world.read(lambda uow: uow.backup_keys.get(builder.tenant_id))
    assert key is not None
    assert key.fault == ""


@pytest.mark.parametrize(
    "error",
    [
        helper_died("restic", "was killed"),
        NoCapacity("The file system of the backups' repositories is full.", retry_after=60),
        EngineUnavailable("The sandbox's helper was killed."),
    ],
    ids=lambda error: error.code,
)
async def test_a_check_that_the_machine_ends_says_nothing_of_a_repository_and_is_made_again(
    scene: Scene, error: BuilderdError
) -> None:
    builder = await scene.world.create()
    await scene.take(builder)
    scene.backup_repository.fail_next("check", error)
    assert await upkeep.check_one(scene.schedule.context, builder.tenant_id) == ""
    assert "backups.damaged" not in await scene.kinds(builder)
    scene.backup_repository.calls.clear()
    await upkeep.check(scene.schedule.context)
    assert "check" not in scene.backup_repository.calls
    scene.world.clock.move(upkeep.CHECK_RETRY.total_seconds())
    await upkeep.check(scene.schedule.context)
    assert "check" in scene.backup_repository.calls
