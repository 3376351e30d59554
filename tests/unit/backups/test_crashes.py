"""A service that dies anywhere in a backup or a restore, or loses its database there: what was begun is ended later.

And nothing is left over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from tests.unit.backups.conftest import Scene
from tests.unit.reconciler.mortal import Killed, MortalStore

from builderd.backups import restores, upkeep
from builderd.backups import service as backups
from builderd.backups.job import BackupSchedule
from builderd.backups.model import Backup, BackupStatus, Restore, RestoreStatus
from builderd.backups.restoring import carry_out
from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.model import Builder, Status
from builderd.core.errors import StoreUnavailable
from builderd.core.ids import DiskId
from builderd.database.unit_of_work import Store, UnitOfWork

T = TypeVar("T")

TAKING = [f"{step}.{moment}" for step in ("CopyDisk", "SaveCopy") for moment in ("begun", "done", "recorded")]
RESTORING = ["FillDisk.begun", "FillDisk.done", "FillDisk.recorded", "HandOver.begun", "HandOver.recorded"]


AWAY = StoreUnavailable("The database does not answer.")


# A restore in place goes through every point: it loses its database in each run, the others by script/soak.
ENDS = {"killed": Killed(), "away": AWAY}
in_place = pytest.mark.parametrize("end", list(ENDS.values()), ids=list(ENDS), indirect=True)


@pytest.fixture(params=[Killed(), pytest.param(AWAY, marks=pytest.mark.slow)], ids=list(ENDS))
def end(request: pytest.FixtureRequest) -> BaseException:
    """End of the service."""
    found: BaseException = request.param
    return found


async def _end_at(scene: Scene, point: str, end: BaseException) -> None:
    ended = False

    def fault(reached: str) -> None:
        nonlocal ended
        if reached == point:
            ended = True
            raise end

    ending = scene.with_fault(fault)
    await ending.begin_open()
    await asyncio.gather(*ending._tasks.values(), return_exceptions=True)
    assert ended, f"{point} was never reached"


@pytest.mark.parametrize("point", TAKING)
async def test_a_backup_survives(scene: Scene, point: str, end: BaseException) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"hello")
    app, now = scene.world.application, scene.world.clock.now()
    planned = await app.store.write(lambda uow: backups.request(uow, app, scene.world.caller, builder.id, now))
    await _end_at(scene, point, end)
    await scene.settle()
    done = await scene.backup(planned)
    assert (done.status, done.copy) == (BackupStatus.DONE, None)
    assert set(scene.world.engine.known_disks) == {builder.disk}
    scene.world.clock.move(25 * 3600)
    await upkeep._forget_strays(scene.schedule.context, await backups.repository(app, builder.tenant_id))
    assert list(scene.backup_repository.repositories[builder.tenant_id].snapshots) == [done.snapshot]


@pytest.mark.parametrize("point", RESTORING)
async def test_a_restore_survives(scene: Scene, point: str, end: BaseException) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"hello")
    backup = await scene.take(builder)
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(
        lambda uow: restores.request_new(uow, app, scene.world.caller, backup, "second", now)
    )
    await _end_at(scene, point, end)
    await scene.settle()
    done = await scene.restore(wanted)
    assert done.status is RestoreStatus.DONE
    made = await scene.world.read(lambda uow: uow.builders.get(done.made or builder.id))
    assert made is not None
    await scene.world.until_status(made, Status.RUNNING)
    assert scene.files(made.disk)["note"] == b"hello"
    assert set(scene.world.engine.known_disks) == {builder.disk, made.disk}


@in_place
@pytest.mark.parametrize("point", [*TAKING, *RESTORING])
async def test_a_restore_in_place_survives(scene: Scene, point: str, end: BaseException) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"before")
    backup = await scene.take(builder)
    await scene.write(builder, "note", b"after")
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: restores.request(uow, app, scene.world.caller, backup, now))
    if point in RESTORING:
        await scene.settle_backups()
    await _end_at(scene, point, end)
    await scene.settle()
    done = await scene.restore(wanted)
    assert done.status is RestoreStatus.DONE
    serving = await outcomes.deployed(app, builder.id, done.number or 0)
    assert scene.files(serving.disk)["note"] == b"before"
    await scene.world.until(lambda: set(scene.world.engine.known_disks) == {serving.disk})
    safety = await scene.world.read(lambda uow: uow.backups.get(done.safety or backup.id))
    assert safety is not None
    assert (
        scene.backup_repository.repositories[builder.tenant_id].snapshots[safety.snapshot or ""].files["note"]
        == b"after"
    )


@pytest.mark.parametrize("point", RESTORING)
async def test_a_drill_survives(scene: Scene, point: str, end: BaseException) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    app, now = scene.world.application, scene.world.clock.now()
    await app.store.write(lambda uow: restores.drill(uow, app, backup, "system", now))
    await _end_at(scene, point, end)
    await scene.settle()
    assert (await scene.backup(backup)).verified_at
    assert set(scene.world.engine.known_disks) == {builder.disk}


@pytest.mark.parametrize("point", RESTORING)
async def test_a_recovery_survives(scene: Scene, point: str, end: BaseException) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"hello")
    await scene.take(builder)
    await scene.world.reached(builders.stop, builder)
    scene.world.engine.known_disks.clear()
    wanted = await scene.world.want(builders.start, builder)
    await scene.world.until(lambda: _recovers(scene, builder))
    await _end_at(scene, point, end)
    await scene.settle()
    await scene.world.until(lambda: _settled(scene, wanted))
    back = await scene.world.builder(builder)
    assert back.status is Status.RUNNING
    assert scene.files(back.disk)["note"] == b"hello"
    assert set(scene.world.engine.known_disks) == {back.disk}


async def _recovers(scene: Scene, builder: Builder) -> bool:
    return bool(await scene.world.read(lambda uow: uow.restores.open_of(builder.id)))


async def _settled(scene: Scene, wanted: Builder) -> bool:
    return (await scene.world.builder(wanted)).observed_generation >= wanted.generation


async def _filled(scene: Scene, name: str) -> Restore:
    """Asked for, in place or as a builder of this name, and killed when its disk was filled."""
    builder = await scene.world.create()
    await scene.write(builder, "note", b"before")
    backup = await scene.take(builder)
    await scene.write(builder, "note", b"after")
    wanted = await _ask(scene, backup, name)
    await scene.settle_backups()
    await _end_at(scene, "HandOver.begun", Killed())
    filled = await scene.restore(wanted)
    assert filled.status is RestoreStatus.FILLED
    return filled


async def _ask(scene: Scene, backup: Backup, name: str) -> Restore:
    app, caller, now = scene.world.application, scene.world.caller, scene.world.clock.now()
    if name:
        return await app.store.write(lambda uow: restores.request_new(uow, app, caller, backup, name, now))
    return await app.store.write(lambda uow: restores.request(uow, app, caller, backup, now))


async def _comes_back(scene: Scene, restore: Restore) -> None:
    """Check that the builder that serves in the end has the files of the backup."""
    await scene.settle()
    done = await scene.restore(restore)
    assert (done.status, done.error) == (RestoreStatus.DONE, "")
    if done.number is not None:
        assert done.number == 2
        serving = await outcomes.deployed(scene.world.application, done.builder_id, done.number)
    else:
        made = await scene.world.read(lambda uow: uow.builders.get(done.made or done.builder_id))
        assert made is not None
        serving = await scene.world.until_status(made, Status.RUNNING)
    assert serving.disk == done.disk
    assert scene.files(serving.disk)["note"] == b"before"
    disks = 2 if done.made else 1
    await scene.world.until(lambda: len(scene.world.engine.known_disks) == disks)


in_place_or_new = pytest.mark.parametrize("name", ["", "second"], ids=["in place", "new"])


@in_place_or_new
@pytest.mark.parametrize("methods", [("read", "write"), ("write",)], ids=["all", "writes"])
async def test_a_filled_restore_waits_for_the_database(scene: Scene, name: str, methods: tuple[str, ...]) -> None:
    filled = await _filled(scene, name)
    with scene.without_database(*methods), pytest.raises(StoreUnavailable):
        await carry_out(scene.schedule.context, filled)
    assert await scene.restore(filled) == filled
    await _comes_back(scene, filled)


def _dying_at_a_deletion(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next time that a disk is removed."""
    delete = scene.world.engine.delete_disk

    async def dies(disk: DiskId) -> None:
        monkeypatch.setattr(scene.world.engine, "delete_disk", delete)
        await delete(disk)
        raise Killed

    monkeypatch.setattr(scene.world.engine, "delete_disk", dies)


@in_place_or_new
async def test_a_restore_that_failed_and_was_killed_before_it_said_so_is_carried_out_anew(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    filled = await _filled(scene, name)
    _dying_at_a_deletion(scene, monkeypatch)
    scene.world.engine.ready = False
    with pytest.raises(Killed):
        await carry_out(scene.schedule.context, filled)
    scene.world.engine.ready = True
    assert filled.disk not in scene.world.engine.known_disks
    await _comes_back(scene, filled)


@in_place_or_new
async def test_half_a_disk_is_never_handed_over(scene: Scene, name: str) -> None:
    filled = await _filled(scene, name)
    del scene.world.engine.known_disks[filled.disk]
    scene.backup_repository.fail_next("restore", Killed())  # type: ignore[arg-type]
    with pytest.raises(Killed):
        await carry_out(scene.schedule.context, filled)
    assert filled.disk in scene.world.engine.known_disks
    await _comes_back(scene, filled)


@in_place_or_new
@pytest.mark.parametrize("error", [AWAY, RuntimeError("a fault of ours")], ids=["away", "fault"])
async def test_handed_over_builder_keeps_its_disk_after_a_crash(scene: Scene, name: str, error: Exception) -> None:
    filled = await _filled(scene, name)
    await _end_at(scene, "HandOver.recorded", error)
    await _comes_back(scene, filled)


class LateStore(MortalStore):
    """Store whose first write is committed when the next one comes, without an answer."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._late: list[Callable[[UnitOfWork], Any]] = []
        self._is_first = True

    async def write(self, work: Callable[[UnitOfWork], T], *, durable: bool = True) -> T:
        if self._is_first:
            self._is_first = False
            self._late.append(work)
            raise AWAY
        while self._late:
            await super().write(self._late.pop())
        return await super().write(work, durable=durable)


@in_place_or_new
async def test_a_hand_over_that_is_committed_late_is_the_only_one(scene: Scene, name: str) -> None:
    filled = await _filled(scene, name)
    late = BackupSchedule(replace(scene.world.application, store=LateStore(scene.world.application.store)))
    with pytest.raises(StoreUnavailable):
        await carry_out(late.context, filled)
    assert await scene.restore(filled) == filled
    await carry_out(late.context, filled)
    await _comes_back(scene, filled)


async def test_a_drill_that_was_killed_between_its_disk_and_its_verdict_is_made_anew(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: restores.drill(uow, app, backup, "system", now))
    await _end_at(scene, "HandOver.begun", Killed())
    _dying_at_a_deletion(scene, monkeypatch)
    with pytest.raises(Killed):
        await carry_out(scene.schedule.context, await scene.restore(wanted))
    await scene.settle()
    assert (await scene.backup(backup)).verified_at
    assert set(scene.world.engine.known_disks) == {builder.disk}


async def test_a_backup_that_was_recorded_stays_done_whatever_happens_then(scene: Scene) -> None:
    builder = await scene.world.create()
    app, now = scene.world.application, scene.world.clock.now()
    planned = await app.store.write(lambda uow: backups.request(uow, app, scene.world.caller, builder.id, now))
    await _end_at(scene, "SaveCopy.recorded", RuntimeError("a fault of ours"))
    await scene.settle()
    done = await scene.backup(planned)
    assert (done.status, done.error, done.copy) == (BackupStatus.DONE, "", None)
    assert set(scene.world.engine.known_disks) == {builder.disk}
