"""Restores: as a new builder, and the drill."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.fakes.sandboxes import Behaviour
from tests.unit.backups.conftest import HOUR, Scene

from builderd.backups import restores
from builderd.backups import service as backups
from builderd.backups.model import Backup, BackupKind, Restore, RestoreStatus
from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.model import Status
from builderd.code.model import BundleFile
from builderd.core.errors import (
    BackupFailed,
    InvalidState,
    NameTaken,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    StartFailed,
    ValidationFailed,
)
from builderd.core.ids import DiskId
from builderd.credentials import service as credentials


async def _ask(scene: Scene, backup: Backup, name: str) -> Restore:
    app, now = scene.world.application, scene.world.clock.now()
    return await app.store.write(lambda uow: restores.request_new(uow, app, scene.world.caller, backup, name, now))


async def _as(scene: Scene, backup: Backup, name: str) -> Restore:
    wanted = await _ask(scene, backup, name)
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
    assert await outcomes.restored(scene.world.application, done) == done


async def _restore(scene: Scene, backup: Backup) -> Restore:
    scene.world.clock.move(1)
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: restores.request(uow, app, scene.world.caller, backup, now))
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
    await scene.world.until(lambda: set(scene.world.engine.known_disks) == {serving.disk})
    safety = (await scene.of(builder))[0]
    assert (safety.id, safety.kind) == (done.safety, BackupKind.BEFORE_RESTORE)
    kept = scene.backup_repository.repositories[builder.tenant_id].snapshots
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
    await scene.world.until(lambda: set(scene.world.engine.known_disks) == {builder.disk})


async def test_nothing_is_replaced_that_could_not_be_backed_up(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    scene.backup_repository.fail_next("save", BackupFailed("the repository is full"))
    failed = await _restore(scene, backup)
    assert failed.status is RestoreStatus.FAILED
    assert "the repository is full" in failed.error
    assert (await scene.world.builder(builder)).disk == builder.disk
    assert "restore" not in scene.backup_repository.calls


async def _begin(scene: Scene, backup: Backup) -> Restore:
    """Asked for, and what is there now is backed up."""
    scene.world.clock.move(1)
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: restores.request(uow, app, scene.world.caller, backup, now))
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
    with pytest.raises(InvalidState, match="given up") as told:
        await outcomes.restored(world.application, wanted)
    assert told.value.data == {"uuid": builder.id}
    left = await world.builder(builder)
    assert (left.status, left.version, left.status_reason) == (Status.STOPPED, 1, "stopped by token acme")
    assert set(world.engine.known_disks) == {builder.disk}


async def _only_fill(scene: Scene, wanted: Restore) -> None:
    def killed(point: str) -> None:
        if point == "HandOver.begun":
            raise Killed

    with pytest.raises(Killed):
        await scene.with_fault(killed)._carry_out(wanted.id)
    assert (await scene.restore(wanted)).status is RestoreStatus.FILLED


class Killed(BaseException):
    """End of the service, as by kill -9."""


async def test_a_deployment_in_the_meantime_is_what_serves(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    backup = await scene.take(builder)
    wanted = await _begin(scene, backup)
    await world.deploy(builder, BundleFile("main.py", b"newer\n"))
    await scene.settle()
    failed = await scene.restore(wanted)
    assert failed.error == "The restore was given up: token acme deployed another version in the meantime."
    with pytest.raises(InvalidState, match="given up"):
        await outcomes.restored(world.application, wanted)
    serving = await world.builder(builder)
    assert (serving.status, serving.version) == (Status.RUNNING, 2)
    assert scene.files(serving.disk)["main.py"] == b"newer\n"


async def test_delete_cancels_the_restore(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    wanted = await _begin(scene, await scene.take(builder))
    await world.want(builders.delete, builder)
    await scene.settle()
    assert (await scene.restore(wanted)).error == "The restore was given up: the builder was deleted by token acme."
    with pytest.raises(NotFound, match="given up") as told:
        await outcomes.restored(world.application, wanted)
    assert told.value.data == {"uuid": builder.id}
    await world.until_status(builder, Status.DELETED)
    assert world.engine.known_disks == {}


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
    await app.store.write(lambda uow: restores.request(uow, app, scene.world.caller, backup, now))
    with pytest.raises(InvalidState):
        await app.store.write(lambda uow: restores.request(uow, app, scene.world.caller, backup, now))
    with pytest.raises(InvalidState):
        await app.store.write(lambda uow: backups.remove(uow, backup))


async def test_a_name_is_refused_at_once_or_when_it_was_taken_meanwhile(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    with pytest.raises(NameTaken):
        await _as(scene, backup, builder.name)
    with pytest.raises(ValidationFailed):
        await _as(scene, backup, "No Such Name")
    wanted = [await _ask(scene, backup, "third") for _ in range(2)]
    await scene.settle()
    done, failed = sorted([await scene.restore(one) for one in wanted], key=lambda one: one.status)
    assert (done.status, failed.status) == (RestoreStatus.DONE, RestoreStatus.FAILED)
    assert failed.disk not in scene.world.engine.known_disks
    with pytest.raises(NameTaken, match="third") as told:
        await outcomes.restored(scene.world.application, failed)
    assert told.value.data == {"uuid": done.made}


@pytest.mark.parametrize("late", [False, True])
async def test_where_no_more_is_allowed_none_is_made_and_no_disk_filled_where_that_is_known(
    scene: Scene, late: bool
) -> None:
    backup = await scene.take(await scene.world.create())
    limited = scene.with_quota(builders=2)
    wanted = await _ask(limited, backup, "third") if late else None
    await scene.world.create(name="second")
    if wanted is None:
        with pytest.raises(QuotaExceeded):
            await _ask(limited, backup, "third")
        assert await scene.world.read(lambda uow: uow.restores.open_of(backup.builder_id)) == []
        return
    await limited.settle()
    with pytest.raises(QuotaExceeded) as told:
        await outcomes.restored(scene.world.application, wanted)
    assert told.value.data == {"builders": {"limit": 2, "used": 2, "wanted": 1}}


async def test_where_it_may_not_run_it_is_not_brought_back_in_place_either(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    await scene.world.reached(builders.stop, builder)
    limited = scene.with_quota(running_builders=0)
    with pytest.raises(QuotaExceeded):
        await _restore(limited, backup)
    assert [one.kind for one in await scene.of(builder)] == [BackupKind.REQUESTED], "nothing was begun"


async def test_restore_without_capacity_is_no_capacity(scene: Scene) -> None:
    backup = await scene.take(await scene.world.create())
    scene.world.engine.fail_next("create_disk", NoCapacity("The store is full.", data={"free": 1}, retry_after=60))
    failed = await _as(scene, backup, "second")
    with pytest.raises(NoCapacity, match="store is full") as told:
        await outcomes.restored(scene.world.application, failed)
    assert (told.value.data, told.value.retry_after) == ({"free": 1}, 60)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", ["", "second"])
async def test_a_credential_that_was_deleted_since_is_named(scene: Scene, name: str, late: bool) -> None:
    world, app, now = scene.world, scene.world.application, scene.world.clock.now()
    tenant = world.caller.tenant_id
    await app.store.write(lambda uow: credentials.put(uow, app.vault, tenant, "mail", {"MAIL_KEY": "x"}, now))
    backup = await scene.take(await world.create(credentials=("mail",)))

    async def forget() -> None:
        await app.store.write(lambda uow: credentials.delete(uow, tenant, "mail", force=True))

    async def ask() -> Restore:
        return await (_ask(scene, backup, name) if name else _begin(scene, backup))

    if not late:
        await forget()
        with pytest.raises(ValidationFailed):
            await ask()
        return
    wanted = await ask()
    await forget()
    await scene.settle()
    with pytest.raises(ValidationFailed) as told:
        await outcomes.restored(app, wanted)
    assert list(told.value.errors) == ["credentials.0"]


async def test_restore_of_a_bad_backup_is_backup_failed(scene: Scene) -> None:
    backup = await scene.take(await scene.world.create())
    for error in (BackupFailed("The back end does not answer."), RuntimeError("a fault of ours")):
        scene.backup_repository.fail_next("restore", error)  # type: ignore[arg-type]
        failed = await _as(scene, backup, "second")
        with pytest.raises(BackupFailed):
            await outcomes.restored(scene.world.application, failed)


async def test_files_that_are_not_those_of_the_backup_become_no_builder(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    scene.backup_repository.altered.add(backup.snapshot or "")
    failed = await _as(scene, backup, "second")
    assert failed.status is RestoreStatus.FAILED
    assert "not those of the backup" in failed.error
    assert await scene.world.read(lambda uow: uow.builders.by_name(builder.tenant_id, "second")) is None
    assert set(scene.world.engine.known_disks) == {builder.disk}
    assert (await scene.kinds(builder))[-1] == "restore.failed"


async def test_only_a_finished_backup_is_restored_and_none_is_removed_meanwhile(scene: Scene) -> None:
    builder = await scene.world.create()
    app, now, caller = scene.world.application, scene.world.clock.now(), scene.world.caller
    planned = await app.store.write(lambda uow: backups.request(uow, app, caller, builder.id, now))
    with pytest.raises(InvalidState):
        await _as(scene, planned, "second")
    with pytest.raises(InvalidState):
        await app.store.write(lambda uow: backups.remove(uow, planned))
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
    assert set(scene.world.engine.known_disks) == {builder.disk}
    assert [one.spec.disk for one in scene.world.running] == [builder.disk]
    assert len(scene.world.application.scratch) == 0


async def test_failed_drill_is_an_event(scene: Scene) -> None:
    builder = await scene.world.create(backup_interval_hours=24)
    await scene.pass_time(24 * HOUR)
    (backup,) = await scene.of(builder)
    scene.backup_repository.altered.add(backup.snapshot or "")
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
    assert set(scene.world.engine.known_disks) == {builder.disk}


@pytest.mark.parametrize("at", ["create_disk", "restore"])
async def test_drill_without_space_or_repository_keeps_the_verdict(scene: Scene, at: str) -> None:
    builder = await scene.world.create(backup_interval_hours=24 * 365)
    backup = await scene.take(builder)
    if at == "restore":
        scene.backup_repository.fail_next("restore", BackupFailed("The back end does not answer."))
    else:
        scene.world.engine.fail_next("create_disk", NoCapacity("The store is full."))
    await scene.pass_time(timedelta(days=7, seconds=1))
    found = await scene.backup(backup)
    assert (await scene.kinds(builder))[-1] == "drill.failed"
    assert (found.fault, found.drilled_at, found.verified_at) == ("", None, None)
    await scene.pass_time(5 * HOUR)
    assert (await scene.backup(backup)).drilled_at is None, "it is not tried all the time"
    await scene.pass_time(1 * HOUR)
    assert (await scene.backup(backup)).verified_at


async def test_many_drills_that_are_due_at_once_have_few_disks(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [await scene.world.create(name=f"app-{number}") for number in range(5)]
    app, now, engine = scene.world.application, scene.world.clock.now(), scene.world.engine
    for backup in [await scene.take(one) for one in made]:
        await app.store.write(lambda uow, backup=backup: restores.drill(uow, app, backup, "system", now))  # type: ignore[misc]
    counts, create = list[int](), engine.create_disk

    async def counted(disk: DiskId, size: int) -> None:
        await create(disk, size)
        counts.append(len(engine.known_disks) - len(made))

    monkeypatch.setattr(engine, "create_disk", counted)
    await scene.settle()
    assert len(counts) == len(made)
    assert max(counts) <= 2
    assert [bool(one.verified_at) for builder in made for one in await scene.of(builder)] == [True] * len(made)


async def _drilled(scene: Scene, backup: Backup) -> Backup:
    app, now = scene.world.application, scene.world.clock.now()
    await app.store.write(lambda uow: restores.drill(uow, app, backup, "system", now))
    await scene.settle()
    assert timedelta(0) <= scene.world.clock.now() - now
    return await scene.backup(backup)


async def test_restore_whose_first_backup_finds_no_room_is_no_capacity(scene: Scene) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    scene.backup_repository.fail_next("save", NoCapacity("The store is full.", retry_after=60))
    failed = await _restore(scene, backup)
    with pytest.raises(NoCapacity, match="so it stays: The store is full") as told:
        await outcomes.restored(scene.world.application, failed)
    assert told.value.retry_after == 60
    assert set(scene.world.engine.known_disks) == {builder.disk}
