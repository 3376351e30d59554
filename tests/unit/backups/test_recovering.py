"""Disks that are gone come back from their newest backup, and what the repository keeps is known again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.backups.conftest import Scene

from builderd.backups import restores, upkeep
from builderd.backups import service as backups
from builderd.backups.model import Backup, BackupStatus, Restore, RestoreStatus
from builderd.backups.port import SaveRequest
from builderd.backups.upkeep import adopt
from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.model import Builder, Status
from builderd.code.model import BundleFile
from builderd.core.errors import BackupFailed, InvalidState, NotFound
from builderd.core.ids import BackupId, BuilderId, DiskId
from builderd.database.unit_of_work import UnitOfWork

SECOND = BundleFile("main.py", b"print('second')\n")


async def _stopped_without_disk(scene: Scene, builder: Builder) -> None:
    await scene.world.reached(builders.stop, builder)
    del scene.world.engine.known_disks[(await scene.world.builder(builder)).disk]


async def _start(scene: Scene, builder: Builder) -> Builder:
    """Ask for it, and see to the backups until it has an outcome."""
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.commit(lambda uow: builders.start(uow, app, scene.world.caller, builder.id, now))
    await scene.world.until(lambda: _is_over(scene, wanted))
    return await outcomes.wait(app, builder.id, wanted.generation)


async def _is_over(scene: Scene, wanted: Builder) -> bool:
    await scene.settle()
    return (await scene.world.builder(wanted)).observed_generation >= wanted.generation


async def test_the_newest_backup_comes_back_by_itself(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"old")
    await scene.take(builder)
    await scene.write(builder, "note", b"new")
    newest = await scene.take(builder)
    await _stopped_without_disk(scene, builder)
    back = await _start(scene, builder)
    assert back.status is Status.RUNNING
    assert scene.files(back.disk)["note"] == b"new"
    assert back.status_reason == f"its disk was gone: the backup of {backups.when(newest)} is back"
    told = [one.type for one in await scene.world.events(builder) if one.type in ("disk.lost", "restore.finished")]
    assert told == ["disk.lost", "restore.finished"]
    assert set(scene.world.engine.known_disks) == {back.disk}
    await scene.world.reached(builders.stop, builder)
    await scene.world.reached(builders.start, builder)
    assert scene.files(back.disk)["note"] == b"new"


async def test_a_builder_is_not_running_while_its_disk_comes_back(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    app, now = scene.world.application, scene.world.clock.now()

    def lose(uow: UnitOfWork) -> None:
        found = uow.builders.get(builder.id, lock=True)
        assert found is not None
        restores.recover(uow, app, found, found.disk, now)

    await app.store.write(lose)
    seen = await scene.world.builder(builder)
    assert seen.status is Status.CREATING
    assert seen.status_reason == f"its disk is gone: the backup of {backups.when(backup)} is being brought back"


async def test_disk_that_reappeared_is_not_recovered(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.take(builder)
    await _stopped_without_disk(scene, builder)
    back = await _start(scene, builder)
    app, now = scene.world.application, scene.world.clock.now()

    async def wanted(disk: DiskId) -> int:
        def recover(uow: UnitOfWork) -> None:
            found = uow.builders.get(back.id, lock=True)
            assert found is not None
            restores.recover(uow, app, found, disk, now)

        await app.store.write(recover)
        return len(await app.store.read(lambda uow: uow.restores.open_of(back.id)))

    assert await wanted(builder.disk) == 0
    assert await wanted(back.disk) == 1, "the disk that it has now would be brought back"


async def test_a_version_deployed_since_the_backup_gets_its_own_code_on_it(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"kept")
    await scene.take(builder)
    changed = await scene.world.deploy(builder, SECOND)
    await _stopped_without_disk(scene, changed)
    back = await _start(scene, builder)
    assert back.version == 2
    assert (scene.files(back.disk)["note"], scene.files(back.disk)["main.py"]) == (b"kept", b"print('second')\n")


async def test_a_backup_that_cannot_be_brought_back_fails_the_builder_and_never_starts_it_empty(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.take(builder)
    await _stopped_without_disk(scene, builder)
    scene.backup_repository.fail_next("restore", BackupFailed("The back end does not answer."))
    with pytest.raises(BackupFailed, match="The back end does not answer"):
        await _start(scene, builder)
    failed = await scene.world.builder(builder)
    assert (failed.status, failed.failure_code) == (Status.FAILED, "backup_failed")
    assert scene.world.engine.known_disks == {}
    assert (await _start(scene, builder)).status is Status.RUNNING, "the second attempt"


async def test_an_older_backup_is_restored_by_hand_though_there_is_nothing_to_back_up_first(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"old")
    older = await scene.take(builder)
    await scene.write(builder, "note", b"new")
    await scene.take(builder)
    await _stopped_without_disk(scene, builder)
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: restores.request(uow, app, scene.world.caller, older, now))
    await scene.settle()
    done = await scene.restore(wanted)
    assert done.status is RestoreStatus.DONE
    serving = await outcomes.deployed(app, builder.id, done.number or 0)
    assert scene.files(serving.disk)["note"] == b"old"


async def test_a_new_version_of_a_builder_without_its_disk_begins_with_the_backup(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"kept")
    await scene.take(builder)
    await _stopped_without_disk(scene, builder)
    number = await scene.world.put(builder, SECOND)
    await scene.world.until(lambda: _has_version(scene, builder, number))
    serving = await outcomes.deployed(scene.world.application, builder.id, number)
    assert scene.files(serving.disk)["note"] == b"kept"


async def _has_version(scene: Scene, builder: Builder, number: int) -> bool:
    await scene.settle()
    return (await scene.world.builder(builder)).version == number


async def test_builder_without_backup_starts_with_an_empty_disk(scene: Scene) -> None:
    builder = await scene.world.create()
    await _stopped_without_disk(scene, builder)
    back = await _start(scene, builder)
    assert back.status is Status.RUNNING
    lost = [one for one in await scene.world.events(builder) if one.type == "disk.lost"]
    assert ["there is no backup of it" in one.reason for one in lost] == [True]


async def test_a_builder_that_is_deleted_meanwhile_leaves_no_disk(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.take(builder)
    await _stopped_without_disk(scene, builder)
    app, now = scene.world.application, scene.world.clock.now()
    await app.commit(lambda uow: builders.start(uow, app, scene.world.caller, builder.id, now))
    await scene.world.until(lambda: _recovers(scene, builder))
    await app.commit(lambda uow: builders.delete(uow, app, scene.world.caller, builder.id, now))
    await scene.world.until_status(builder, Status.DELETED)
    await scene.settle()
    assert scene.world.engine.known_disks == {}
    assert (await scene.of(builder))[0].status is BackupStatus.DONE


async def _recovers(scene: Scene, builder: Builder) -> bool:
    return bool(await scene.world.read(lambda uow: uow.restores.open_of(builder.id)))


async def test_backup_cannot_be_removed_while_it_is_brought_back(scene: Scene) -> None:
    """Neither by its owner nor by the retention; the builder gets its files."""
    builder = await scene.world.create()
    await scene.write(builder, "note", b"kept")
    backup = await scene.take(builder)
    await _stopped_without_disk(scene, builder)
    app, now = scene.world.application, scene.world.clock.now()

    def begin(uow: UnitOfWork) -> None:
        found = uow.builders.get(builder.id, lock=True)
        assert found is not None
        restores.recover(uow, app, found, found.disk, now)

    await app.store.write(begin)
    with pytest.raises(InvalidState, match="being restored"):
        await app.store.write(lambda uow: backups.remove(uow, backup))
    await app.store.write(lambda uow: uow.backups.save(replace(backup, expires_at=now)))
    scene.world.clock.move(1)
    await upkeep.clean_up(scene.schedule.context)
    back = await _start(scene, builder)
    assert back.status is Status.RUNNING
    assert scene.files(back.disk)["note"] == b"kept"


@pytest.mark.parametrize("kind", ["same", "new", "drill"])
async def test_restore_of_a_backup_whose_snapshot_is_being_removed_is_refused(scene: Scene, kind: str) -> None:
    """Read before its removal, as in a transaction that began then."""
    builder = await scene.world.create()
    backup = await scene.take(builder)
    app, caller, now = scene.world.application, scene.world.caller, scene.world.clock.now()
    await app.store.write(lambda uow: backups.remove(uow, backup))

    def restore(uow: UnitOfWork) -> Restore:
        match kind:
            case "same":
                return restores.request(uow, app, caller, backup, now)
            case "new":
                return restores.request_new(uow, app, caller, backup, "another", now)
            case _:
                return restores.drill(uow, app, backup, "me", now)

    refused: list[object] = []

    async def forget(*arguments: Any) -> None:
        with pytest.raises(NotFound):
            await app.store.write(restore)
        refused.append(kind)

    scene.backup_repository.forget = forget  # type: ignore[method-assign, assignment]
    await upkeep.clean_up(scene.schedule.context)
    assert refused == [kind]
    assert await scene.world.read(lambda uow: uow.restores.open_of(builder.id)) == []


async def _forgotten(scene: Scene, backup: Backup) -> None:
    """Remove it, as in a state from before it was taken."""
    await scene.world.application.store.write(lambda uow: uow.backups.delete(backup.id))


async def test_a_backup_of_after_the_state_is_known_again_and_can_be_restored(scene: Scene) -> None:
    builder = await scene.world.create()
    older = await scene.take(builder)
    await scene.write(builder, "note", b"new")
    newer = await scene.take(builder)
    await _forgotten(scene, newer)
    await adopt(scene.schedule.context)
    found = await scene.of(builder)
    assert {one.id for one in found} == {newer.id, older.id}
    again = next(one for one in found if one.id == newer.id)
    assert (again.snapshot, again.status, again.version) == (newer.snapshot, BackupStatus.DONE, newer.version)
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: restores.request_new(uow, app, scene.world.caller, again, "second", now))
    await scene.settle()
    assert scene.files((await scene.restore(wanted)).disk)["note"] == b"new"


async def test_backup_that_is_gone_is_forgotten(scene: Scene) -> None:
    builder = await scene.world.create()
    first, second = await scene.take(builder), await scene.take(builder)
    repository = await backups.repository(scene.world.application, builder.tenant_id)
    await scene.backup_repository.forget(repository, [first.snapshot or ""])
    await adopt(scene.schedule.context)
    assert [one.id for one in await scene.of(builder)] == [second.id]


async def test_known_and_foreign_snapshots_are_unchanged(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.take(builder)
    before = await scene.of(builder)
    stranger = BackupId("5a0e6d0e-0000-4000-8000-000000000000")
    repository = await backups.repository(scene.world.application, builder.tenant_id)
    await scene.backup_repository.save(
        repository, SaveRequest(stranger, BuilderId(stranger), builder.disk, 1 << 30), lambda _: None
    )
    await adopt(scene.schedule.context)
    assert await scene.of(builder) == before


async def test_nothing_is_decided_while_the_archive_does_not_answer(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.take(builder)
    scene.backup_repository.fail_next("snapshots", BackupFailed("no answer"))
    with pytest.raises(BackupFailed):
        await adopt(scene.schedule.context)
    assert len(await scene.of(builder)) == 1


async def test_a_repository_that_is_not_there_takes_no_backup_off_the_list(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    repositories = dict(scene.backup_repository.repositories)
    scene.backup_repository.repositories.clear()
    with pytest.raises(BackupFailed, match="no repository"):
        await adopt(scene.schedule.context)
    assert await scene.of(builder) == [backup]
    scene.backup_repository.repositories.update(repositories)
    await adopt(scene.schedule.context)
    assert await scene.of(builder) == [backup]
