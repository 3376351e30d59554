"""Backups are taken on request, when due, and before a disk is deleted, within limits; failures are reported."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.backups.conftest import HOUR, Scene

from builderd.application import Application
from builderd.backups import service as backups
from builderd.backups import upkeep
from builderd.backups.model import Backup, BackupKind, BackupStatus
from builderd.backups.port import SnapshotSummary
from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.model import Desired, Status
from builderd.core.errors import BackupFailed, InvalidState, NoCapacity, NotFound
from builderd.core.ids import DiskId, TenantId
from builderd.events.model import SYSTEM
from builderd.idle.job import Idleness


async def test_a_backup_holds_what_is_on_the_disk_and_leaves_no_copy(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"hello")
    backup = await scene.take(builder)
    assert (backup.status, backup.version, backup.files, backup.copy) == (BackupStatus.DONE, 1, 2, None)
    assert backup.size_bytes == 5 + len(b"print('hello')\n")
    assert set(scene.world.engine.known_disks) == {builder.disk}
    kept = scene.backup_repository.repositories[builder.tenant_id].snapshots
    assert kept[backup.snapshot or ""].files["note"] == b"hello"
    assert await scene.kinds(builder) == ["backup.started", "backup.finished"]
    assert await outcomes.taken(scene.world.application, backup) == backup


async def test_backups_are_taken_in_their_interval(scene: Scene) -> None:
    builder = await scene.world.create(backup_interval_hours=6)
    await scene.world.create(name="without")
    await scene.pass_time(5 * HOUR)
    assert await scene.of(builder) == []
    await scene.pass_time(1.1 * HOUR)
    await scene.pass_time(1 * HOUR)
    assert [one.kind for one in await scene.of(builder)] == [BackupKind.SCHEDULED]
    await scene.pass_time(6 * HOUR)
    assert len(await scene.of(builder)) == 2


async def test_failed_backup_is_recorded_and_retried(scene: Scene) -> None:
    builder = await scene.world.create(backup_interval_hours=24)
    scene.backup_repository.fail_next("save", BackupFailed("the disk is gone"), BackupFailed("still"))
    await scene.pass_time(24 * HOUR)
    (failed,) = await scene.of(builder)
    assert (failed.status, failed.error, failed.copy) == (BackupStatus.FAILED, "the disk is gone", None)
    assert (await scene.kinds(builder))[-1] == "backup.failed"
    view = await scene.world.read(
        lambda uow: builders.view(uow, scene.world.application, builder, scene.world.clock.now())
    )
    assert view.last_backup == failed
    assert set(scene.world.engine.known_disks) == {builder.disk}
    await scene.pass_time(timedelta(minutes=9))
    assert len(await scene.of(builder)) == 1
    await scene.pass_time(timedelta(minutes=2))
    assert len(await scene.of(builder)) == 2
    await scene.pass_time(timedelta(minutes=11))
    assert len(await scene.of(builder)) == 2, "the pause doubles"
    await scene.pass_time(timedelta(minutes=10))
    assert (await scene.of(builder))[0].status is BackupStatus.DONE


async def test_internal_error_is_reported_without_details(scene: Scene) -> None:
    builder = await scene.world.create()
    scene.world.engine.fail_next("clone_disk", NoCapacity("The store is full."))
    assert (await scene.take(builder)).error == "The store is full."


async def test_a_builder_without_a_disk_has_nothing_to_back_up(scene: Scene) -> None:
    builder = await scene.world.create()
    await scene.world.reached(builders.stop, builder)
    del scene.world.engine.known_disks[builder.disk]
    failed = await scene.take(builder)
    assert "no files" in failed.error
    app = scene.world.application
    with pytest.raises(InvalidState, match="no files"):
        await outcomes.taken(app, failed)
    with pytest.raises(InvalidState, match="is stopped and has no files"):
        await backups.ask(app, scene.world.caller, builder.id)
    assert len(await scene.of(builder)) == 1, "it is refused at once"


async def test_waiter_for_a_backup_gets_the_builders_deletion(scene: Scene) -> None:
    builder = await scene.world.create()
    app = scene.world.application
    planned = await backups.ask(app, scene.world.caller, builder.id)
    await _delete(scene, builder.id, purge=True)
    await scene.world.until_status(builder, Status.DELETED)
    await scene.settle()
    with pytest.raises(NotFound, match="deleted"):
        await outcomes.taken(app, planned)


async def test_a_deleted_builder_leaves_a_last_backup_for_some_days(scene: Scene) -> None:
    builder = await scene.world.create(backup_interval_hours=6)
    first = await scene.take(builder)
    await scene.write(builder, "note", b"last words")
    scene.world.clock.move(1)
    await _delete(scene, builder.id, purge=False)
    await scene.world.until_status(builder, Status.DELETED)
    await scene.settle()
    last, earlier = await scene.of(builder)
    assert (last.kind, last.status, last.copy) == (BackupKind.DELETED, BackupStatus.DONE, None)
    assert earlier.id == first.id
    assert scene.world.engine.known_disks == {}
    week = scene.world.clock.now() + timedelta(days=7)
    assert all(one.expires_at and one.expires_at <= week for one in (last, earlier))
    kept = scene.backup_repository.repositories[builder.tenant_id].snapshots
    assert kept[last.snapshot or ""].files["note"] == b"last words"


async def test_last_backup_of_a_deleted_builder_is_retried(scene: Scene) -> None:
    builder = await scene.world.create(backup_interval_hours=6)
    await _delete(scene, builder.id, purge=False)
    await scene.world.until_status(builder, Status.DELETED)
    scene.backup_repository.fail_next("save", BackupFailed("no"), BackupFailed("no"))
    await scene.settle()
    (waiting,) = await scene.of(builder)
    assert (waiting.status, waiting.error) == (BackupStatus.COPIED, "no")
    assert waiting.copy in scene.world.engine.known_disks
    await scene.pass_time(timedelta(minutes=11))
    await scene.pass_time(timedelta(minutes=30))
    assert (await scene.of(builder))[0].status is BackupStatus.DONE
    assert scene.world.engine.known_disks == {}


async def test_auto_stopped_builder_is_backed_up(scene: Scene) -> None:
    builder = await scene.world.create(backup_interval_hours=6, auto_stop_interval=15)
    other = await scene.world.create(name="without", auto_stop_interval=15)
    await scene.write(builder, "note", b"hello")
    idleness = Idleness(scene.world.application)
    await idleness.check()
    scene.world.clock.move(16 * 60)
    await idleness.check()
    for one in (builder, other):
        await scene.world.until_status(one, Status.STOPPED)
    await scene.settle()
    (backup,) = await scene.of(builder)
    assert (backup.kind, backup.status, backup.actor) == (BackupKind.IDLE, BackupStatus.DONE, SYSTEM)
    assert await scene.of(other) == []
    kept = scene.backup_repository.repositories[builder.tenant_id].snapshots
    assert kept[backup.snapshot or ""].files["note"] == b"hello"


async def test_builder_stopped_by_a_person_waits_for_its_interval(scene: Scene) -> None:
    builder = await scene.world.create(backup_interval_hours=6)
    await scene.world.reached(builders.stop, builder)
    await scene.settle()
    assert await scene.of(builder) == []


async def test_purging_leaves_nothing(scene: Scene) -> None:
    builder = await scene.world.create(backup_interval_hours=6)
    await scene.take(builder)
    await _delete(scene, builder.id, purge=True)
    await scene.world.until_status(builder, Status.DELETED)
    await scene.settle()
    now = scene.world.clock.now()
    assert await scene.world.read(lambda uow: backups.of_tenant(uow, builder.tenant_id, now)) == []
    assert scene.world.engine.known_disks == {}


async def test_without_an_interval_nothing_is_kept_of_a_deleted_builder(scene: Scene) -> None:
    builder = await scene.world.create()
    await _delete(scene, builder.id, purge=False)
    await scene.world.until_status(builder, Status.DELETED)
    assert await scene.of(builder) == []
    assert scene.world.engine.known_disks == {}


async def _delete(scene: Scene, builder_id: str, *, purge: bool) -> None:
    app, now = scene.world.application, scene.world.clock.now()
    deleted = await app.commit(
        lambda uow: backups.delete_builder(uow, app, scene.world.caller, builder_id, now, purge=purge)
    )
    assert deleted.desired is Desired.DELETED


def _saving_slowly(app: Application, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Set once a backup is being saved; to be set for it to go on."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    save = app.backup_repository.save

    async def slow(*args: Any, **more: Any) -> SnapshotSummary:
        begun.set()
        await go_on.wait()
        return await save(*args, **more)

    monkeypatch.setattr(app.backup_repository, "save", slow)
    return begun, go_on


@pytest.mark.parametrize("purge", [True, False])
async def test_backup_in_progress_of_a_deleted_builder_expires_in_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, purge: bool
) -> None:
    world, app = scene.world, scene.world.application
    builder = await world.create()
    begun, go_on = _saving_slowly(app, monkeypatch)
    now = world.clock.now()
    await app.store.write(lambda uow: backups.request(uow, app, world.caller, builder.id, now))
    await scene.schedule.begin_open()
    await begun.wait()
    await app.commit(lambda uow: backups.delete_builder(uow, app, world.caller, builder.id, now, purge=purge))
    await upkeep.clean_up(scene.schedule.context)
    assert [one.copy is None for one in await scene.of(builder)] == [False], "what is being saved stays until it is"
    go_on.set()
    await scene.settle()
    (done,) = await scene.of(builder)
    assert (done.status, done.expires_at) == (
        BackupStatus.DONE,
        backups.LONG_AGO if purge else now + app.backup_rules.keep_deleted,
    )
    world.clock.move((app.backup_rules.keep_deleted + HOUR).total_seconds())
    await upkeep.clean_up(scene.schedule.context)
    assert await scene.of(builder) == []
    assert scene.backup_repository.repositories[builder.tenant_id].snapshots == {}


async def test_one_is_asked_for_at_a_time_also_while_its_copy_is_being_saved(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, app = scene.world, scene.world.application
    builder = await world.create()
    begun, go_on = _saving_slowly(app, monkeypatch)

    async def ask() -> Backup:
        now = world.clock.now()
        return await app.store.write(lambda uow: backups.request(uow, app, world.caller, builder.id, now))

    first = await ask()
    await scene.schedule.begin_open()
    await begun.wait()
    assert (await scene.backup(first)).status is BackupStatus.COPIED
    with pytest.raises(InvalidState, match="being taken"):
        await ask()
    go_on.set()
    await scene.settle()
    await ask()


async def test_many_that_are_due_at_once_hold_few_copies(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [await scene.world.create(name=f"app-{number}", backup_interval_hours=1) for number in range(5)]
    engine = scene.world.engine
    counts, clone = list[int](), engine.clone_disk

    async def counted(source: DiskId, target: DiskId, size: int, *, for_backup: bool) -> None:
        await clone(source, target, size, for_backup=for_backup)
        counts.append(len(engine.known_disks) - len(made))

    monkeypatch.setattr(engine, "clone_disk", counted)
    await scene.pass_time(1.01 * HOUR)
    assert len(counts) == len(made)
    assert max(counts) <= 2
    assert [one.status for builder in made for one in await scene.of(builder)] == [BackupStatus.DONE] * len(made)


async def test_drills_of_one_tenant_do_not_keep_those_of_others_waiting(scene: Scene) -> None:
    context, entered = scene.schedule.context, asyncio.Queue[str]()

    async def drill(tenant: str) -> None:
        async with context.drill(TenantId(tenant)):
            entered.put_nowait(tenant)
            await asyncio.Event().wait()

    drills = [asyncio.create_task(drill(tenant)) for tenant in ("culprit", "culprit", "culprit", "victim")]
    async with asyncio.timeout(5):
        assert [await entered.get(), await entered.get()] == ["culprit", "victim"]
    for one in drills:
        one.cancel()
    await asyncio.gather(*drills, return_exceptions=True)
