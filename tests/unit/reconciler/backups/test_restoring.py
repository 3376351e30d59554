"""Restores: as a new builder, and the drill."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.unit.reconciler.backups.conftest import HOUR, Scene

from builderd.adapters.fakes.engine import Behaviour
from builderd.domain.backups import Backup, BackupKind, Restore, RestoreStatus
from builderd.domain.builders import Status
from builderd.domain.bundles import BundleFile
from builderd.domain.errors import BackupFailed, InvalidState, NameTaken, StartFailed, ValidationFailed
from builderd.services import backups, builders, outcomes


async def _as(scene: Scene, backup: Backup, name: str) -> Restore:
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: backups.restore_as(uow, app, scene.world.caller, backup, name, now))
    await scene.settle()
    return await scene.restore(wanted)


async def test_a_backup_becomes_a_builder_of_its_own_and_keeps_what_its_app_wrote(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "main.py", b"changed by the app")
    backup = await scene.take(builder)
    await scene.write(builder, "main.py", b"changed again")
    done = await _as(scene, backup, "second")
    assert (done.status, done.error) == (RestoreStatus.DONE, "")
    made = await scene.world.read(lambda uow: uow.builders.by_name(builder.tenant_id, "second"))
    assert made is not None
    assert made.id == done.made
    made = await scene.world.until_status(made, Status.RUNNING)
    assert scene.files(made.disk)["main.py"] == b"changed by the app"
    assert scene.files(builder.disk)["main.py"] == b"changed again"
    assert await backups.restored(scene.world.application, done) == done


async def _restore(scene: Scene, backup: Backup) -> Restore:
    scene.world.clock.move(1)
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: backups.restore(uow, app, scene.world.caller, backup, now))
    await scene.settle()
    return await scene.restore(wanted)


async def test_a_backup_comes_back_in_place_and_what_was_there_is_backed_up_first(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"before")
    backup = await scene.take(builder)
    await scene.write(builder, "note", b"after")
    done = await _restore(scene, backup)
    assert (done.status, done.error, done.number) == (RestoreStatus.DONE, "", 2)
    serving = await outcomes.deployed(scene.world.application, builder.id, 2)
    assert (serving.version, serving.disk) == (2, done.disk)
    assert scene.files(serving.disk)["note"] == b"before"
    await scene.world.until(lambda: set(scene.world.engine.disks) == {serving.disk})
    safety = (await scene.of(builder))[0]
    assert (safety.id, safety.kind) == (done.safety, BackupKind.BEFORE_RESTORE)
    kept = scene.archive.repositories[builder.tenant_id].snapshots
    assert kept[safety.snapshot or ""].files["note"] == b"after"


async def test_an_app_that_does_not_come_up_with_the_backup_leaves_what_was_there(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    await scene.write(builder, "note", b"after")
    scene.world.engine.behave("python3 main.py", Behaviour(listens_at=None, exits_at=1, exit_code=3), Behaviour())
    done = await _restore(scene, backup)
    with pytest.raises(StartFailed):
        await outcomes.deployed(scene.world.application, builder.id, done.number or 0)
    serving = await scene.world.until_status(builder, Status.RUNNING)
    assert (serving.version, serving.disk) == (1, builder.disk)
    assert scene.files(builder.disk)["note"] == b"after"
    await scene.world.until(lambda: set(scene.world.engine.disks) == {builder.disk})


async def test_nothing_is_replaced_that_could_not_be_backed_up(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    scene.archive.fail_next("save", BackupFailed("the repository is full"))
    failed = await _restore(scene, backup)
    assert failed.status is RestoreStatus.FAILED
    assert "the repository is full" in failed.error
    assert (await scene.world.builder(builder)).disk == builder.disk
    assert "restore" not in scene.archive.calls


async def _begin(scene: Scene, backup: Backup) -> Restore:
    """Asked for, and what is there now is backed up."""
    scene.world.clock.move(1)
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: backups.restore(uow, app, scene.world.caller, backup, now))
    await scene.settle_backups()
    return wanted


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("at_rest", [False, True])
async def test_a_stop_in_the_meantime_is_not_undone(scene: Scene, at_rest: bool, filled: bool) -> None:
    world = scene.world
    builder = await world.create()
    backup = await scene.take(builder)
    if at_rest:
        await world.reached(builders.stop, builder)
    wanted = await _begin(scene, backup)
    if filled:
        await _only_fill(scene, wanted)
    await world.reached(builders.stop, builder)
    await scene.settle()
    failed = await scene.restore(wanted)
    assert failed.status is RestoreStatus.FAILED
    assert failed.error == "The restore was given up: the builder was stopped by token acme."
    left = await world.builder(builder)
    assert (left.status, left.version, left.status_reason) == (Status.STOPPED, 1, "stopped by token acme")
    assert set(world.engine.disks) == {builder.disk}


async def _only_fill(scene: Scene, wanted: Restore) -> None:
    def killed(point: str) -> None:
        if point == "HandOver.begun":
            raise Killed

    with pytest.raises(Killed):
        await scene.with_fault(killed)._carry_out(wanted.id)
    assert (await scene.restore(wanted)).status is RestoreStatus.FILLED


class Killed(BaseException):
    """As by kill -9."""


async def test_a_deployment_in_the_meantime_is_what_serves(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    backup = await scene.take(builder)
    wanted = await _begin(scene, backup)
    await world.deploy(builder, BundleFile("main.py", b"newer\n"))
    await scene.settle()
    failed = await scene.restore(wanted)
    assert failed.error == "The restore was given up: token acme deployed another version in the meantime."
    serving = await world.builder(builder)
    assert (serving.status, serving.version) == (Status.RUNNING, 2)
    assert scene.files(serving.disk)["main.py"] == b"newer\n"


async def test_who_deletes_the_builder_in_the_meantime_gives_it_up(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    wanted = await _begin(scene, await scene.take(builder))
    await world.want(builders.delete, builder)
    await scene.settle()
    assert (await scene.restore(wanted)).error == "The restore was given up: the builder was deleted by token acme."
    await world.until_status(builder, Status.DELETED)
    assert world.engine.disks == {}


async def test_a_version_that_is_being_deployed_when_it_is_asked_for_makes_way(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    backup = await scene.take(builder)
    world.scanner.open.clear()
    await world.put(builder, BundleFile("main.py", b"newer\n"))
    done = await _restore(scene, backup)
    world.scanner.open.set()
    assert (done.status, done.error, done.number) == (RestoreStatus.DONE, "", 3)
    serving = await outcomes.deployed(world.application, builder.id, 3)
    assert (serving.version, serving.disk) == (3, done.disk)


async def test_a_builder_made_of_a_backup_leaves_no_gate_out(scene: Scene) -> None:
    builder = await scene.world.create(skip_review=True, skip_qa=True)
    made = (await _as(scene, await scene.take(builder), "second")).made
    assert made is not None
    version = await scene.world.read(lambda uow: uow.versions.get(made, 1))
    assert version is not None
    assert (version.settings.skip_review, version.settings.skip_qa) == (False, False)


async def test_one_restore_at_a_time(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    app, now = scene.world.application, scene.world.clock.now()
    await app.store.write(lambda uow: backups.restore(uow, app, scene.world.caller, backup, now))
    with pytest.raises(InvalidState):
        await app.store.write(lambda uow: backups.restore(uow, app, scene.world.caller, backup, now))
    with pytest.raises(InvalidState):
        await app.store.write(lambda uow: backups.remove(uow, backup, now))


async def test_a_deleted_builder_comes_back_under_its_name(scene: Scene) -> None:
    builder = await scene.world.create(backup_interval_hours=1)
    await scene.write(builder, "note", b"precious")
    app, now = scene.world.application, scene.world.clock.now()
    await app.commit(lambda uow: backups.delete_builder(uow, app, scene.world.caller, builder.id, now, purge=False))
    await scene.world.until_status(builder, Status.DELETED)
    await scene.settle()
    (last,) = await scene.of(builder)
    done = await _as(scene, last, builder.name)
    made = await scene.world.read(lambda uow: uow.builders.get(done.made or builder.id))
    assert made is not None
    await scene.world.until_status(made, Status.RUNNING)
    assert scene.files(made.disk)["note"] == b"precious"


async def test_a_name_is_refused_at_once_or_when_it_was_taken_meanwhile(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    with pytest.raises(NameTaken):
        await _as(scene, backup, builder.name)
    with pytest.raises(ValidationFailed):
        await _as(scene, backup, "No Such Name")
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: backups.restore_as(uow, app, scene.world.caller, backup, "third", now))
    await scene.world.create(name="third")
    await scene.settle()
    failed = await scene.restore(wanted)
    assert failed.status is RestoreStatus.FAILED
    assert failed.disk not in scene.world.engine.disks
    with pytest.raises(BackupFailed, match="third"):
        await backups.restored(app, failed)


async def test_files_that_are_not_those_of_the_backup_become_no_builder(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    scene.archive.damage(backup.snapshot or "")
    failed = await _as(scene, backup, "second")
    assert failed.status is RestoreStatus.FAILED
    assert "not those of the backup" in failed.error
    assert await scene.world.read(lambda uow: uow.builders.by_name(builder.tenant_id, "second")) is None
    assert set(scene.world.engine.disks) == {builder.disk}
    assert (await scene.kinds(builder))[-1] == "restore.failed"


async def test_only_a_finished_backup_is_restored_and_none_is_removed_meanwhile(scene: Scene) -> None:
    builder = await scene.world.create()
    app, now, caller = scene.world.application, scene.world.clock.now(), scene.world.caller
    planned = await app.store.write(lambda uow: backups.request(uow, app, caller, builder.id, now))
    with pytest.raises(InvalidState):
        await _as(scene, planned, "second")
    with pytest.raises(InvalidState):
        await app.store.write(lambda uow: backups.remove(uow, planned, now))
    with pytest.raises(InvalidState):
        await app.store.write(lambda uow: backups.request(uow, app, caller, builder.id, now))


async def test_the_newest_backup_is_tried_out_from_time_to_time(scene: Scene) -> None:
    builder = await scene.world.create(backup_interval_hours=24)
    for _ in range(8):
        await scene.pass_time(24.1 * HOUR)
    found = await scene.of(builder)
    verified = [one for one in found if one.verified_at]
    assert len(verified) == 1
    assert "drill.passed" in await scene.kinds(builder)
    assert set(scene.world.engine.disks) == {builder.disk}
    assert [one.spec.disk for one in scene.world.running] == [builder.disk]
    assert scene.world.application.scratch == set()


async def test_a_drill_that_finds_a_fault_tells_it(scene: Scene) -> None:
    builder = await scene.world.create(backup_interval_hours=24)
    await scene.pass_time(24 * HOUR)
    (backup,) = await scene.of(builder)
    scene.archive.damage(backup.snapshot or "")
    await scene.world.reached(builders.stop, builder)
    found = await _drilled(scene, backup)
    assert "not those of the backup" in found.fault
    assert found.verified_at is None
    assert (await scene.kinds(builder))[-1] == "drill.failed"


async def test_an_app_that_does_not_come_up_fails_its_drill(scene: Scene) -> None:
    builder = await scene.world.create(backup_interval_hours=24)
    backup = await scene.take(builder)
    scene.world.engine.behave("python3 main.py", Behaviour(listens_at=None, exits_at=1, exit_code=3, lines=("oh no",)))
    found = await _drilled(scene, backup)
    assert "oh no" in found.fault
    assert found.verified_at is None
    assert set(scene.world.engine.disks) == {builder.disk}


async def _drilled(scene: Scene, backup: Backup) -> Backup:
    app, now = scene.world.application, scene.world.clock.now()
    await app.store.write(lambda uow: backups.drill(uow, app, backup, "system", now))
    await scene.settle()
    assert timedelta(0) <= scene.world.clock.now() - now
    return await scene.backup(backup)
