"""A service that dies anywhere in a backup or a restore: the next one ends it, and nothing is left over."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.reconciler.backups.conftest import Scene

from builderd.domain.backups import BackupStatus, RestoreStatus
from builderd.domain.builders import Builder, Status
from builderd.reconciler.backups import upkeep
from builderd.services import backups, builders, outcomes

TAKING = [f"{step}.{moment}" for step in ("HoldCopy", "SaveCopy") for moment in ("begun", "done", "recorded")]
RESTORING = ["FillDisk.begun", "FillDisk.done", "FillDisk.recorded", "HandOver.begun", "HandOver.recorded"]


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


async def _die_at(scene: Scene, point: str) -> None:
    def fault(reached: str) -> None:
        if reached == point:
            raise Killed

    dying = scene.with_fault(fault)
    await dying.begin_open()
    tasks = list(dying._tasks.values())
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert any(isinstance(one, Killed) for one in outcomes), f"{point} was never reached"


@pytest.mark.parametrize("point", TAKING)
async def test_a_backup_survives(scene: Scene, point: str) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"hello")
    app, now = scene.world.application, scene.world.clock.now()
    planned = await app.store.write(lambda uow: backups.request(uow, app, scene.world.caller, builder.id, now))
    await _die_at(scene, point)
    await scene.settle()
    done = await scene.backup(planned)
    assert (done.status, done.copy) == (BackupStatus.DONE, None)
    assert set(scene.world.engine.disks) == {builder.disk}
    scene.world.clock.move(25 * 3600)
    await upkeep._forget_strays(scene.schedule.desk, await backups.repository(app, builder.tenant_id))
    assert list(scene.archive.repositories[builder.tenant_id].snapshots) == [done.snapshot]


@pytest.mark.parametrize("point", RESTORING)
async def test_a_restore_survives(scene: Scene, point: str) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"hello")
    backup = await scene.take(builder)
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: backups.restore_as(uow, app, scene.world.caller, backup, "second", now))
    await _die_at(scene, point)
    await scene.settle()
    done = await scene.restore(wanted)
    assert done.status is RestoreStatus.DONE
    made = await scene.world.read(lambda uow: uow.builders.get(done.made or builder.id))
    assert made is not None
    await scene.world.until_status(made, Status.RUNNING)
    assert scene.files(made.disk)["note"] == b"hello"
    assert set(scene.world.engine.disks) == {builder.disk, made.disk}


@pytest.mark.parametrize("point", [*TAKING, *RESTORING])
async def test_a_restore_in_place_survives(scene: Scene, point: str) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"before")
    backup = await scene.take(builder)
    await scene.write(builder, "note", b"after")
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: backups.restore(uow, app, scene.world.caller, backup, now))
    if point in RESTORING:
        await scene.settle_backups()
    await _die_at(scene, point)
    await scene.settle()
    done = await scene.restore(wanted)
    assert done.status is RestoreStatus.DONE
    serving = await outcomes.deployed(app, builder.id, done.number or 0)
    assert scene.files(serving.disk)["note"] == b"before"
    await scene.world.until(lambda: set(scene.world.engine.disks) == {serving.disk})
    safety = await scene.world.read(lambda uow: uow.backups.get(done.safety or backup.id))
    assert safety is not None
    assert scene.archive.repositories[builder.tenant_id].snapshots[safety.snapshot or ""].files["note"] == b"after"


@pytest.mark.parametrize("point", RESTORING)
async def test_a_drill_survives(scene: Scene, point: str) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    app, now = scene.world.application, scene.world.clock.now()
    await app.store.write(lambda uow: backups.drill(uow, app, backup, "system", now))
    await _die_at(scene, point)
    await scene.settle()
    assert (await scene.backup(backup)).verified_at
    assert set(scene.world.engine.disks) == {builder.disk}


@pytest.mark.parametrize("point", RESTORING)
async def test_a_recovery_survives(scene: Scene, point: str) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"hello")
    await scene.take(builder)
    await scene.world.reached(builders.stop, builder)
    scene.world.engine.disks.clear()
    wanted = await scene.world.want(builders.start, builder)
    await scene.world.until(lambda: _recovers(scene, builder))
    await _die_at(scene, point)
    await scene.settle()
    await scene.world.until(lambda: _settled(scene, wanted))
    back = await scene.world.builder(builder)
    assert back.status is Status.RUNNING
    assert scene.files(back.disk)["note"] == b"hello"
    assert set(scene.world.engine.disks) == {back.disk}


async def _recovers(scene: Scene, builder: Builder) -> bool:
    return bool(await scene.world.read(lambda uow: uow.restores.open_of(builder.id)))


async def _settled(scene: Scene, wanted: Builder) -> bool:
    return (await scene.world.builder(wanted)).settled_run >= wanted.run
