"""Open backups are worked on once, also when the schedule is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.fakes.sandboxes import Behaviour
from tests.unit.backups.conftest import Scene

from builderd.backups import restores
from builderd.backups import service as backups
from builderd.backups.model import BackupStatus, RestoreStatus
from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.code.model import BundleFile
from builderd.core.errors import StartFailed
from builderd.events.retention import RetentionJob
from builderd.review.model import ReviewFailed


async def _late(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A look for what is open that has seen it, and does not come back before what this answers is awaited."""
    store, goes_on = scene.world.application.store, asyncio.Event()
    seen, read = asyncio.Event(), store.read

    async def slow(work: Callable[[Any], Any]) -> Any:
        monkeypatch.setattr(store, "read", read)
        found = await read(work)
        seen.set()
        await goes_on.wait()
        return found

    monkeypatch.setattr(store, "read", slow)
    look = asyncio.create_task(scene.schedule.begin_open())
    await seen.wait()

    async def come_back() -> None:
        goes_on.set()
        await look
        await scene.schedule.idle()

    return come_back


async def test_a_backup_that_was_done_meanwhile_is_not_taken_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = await scene.world.create()
    await scene.write(builder, "note", b"before")
    app, now = scene.world.application, scene.world.clock.now()
    planned = await app.store.write(lambda uow: backups.request(uow, app, scene.world.caller, builder.id, now))
    come_back = await _late(scene, monkeypatch)
    await scene.settle()
    done = await scene.backup(planned)
    await scene.write(builder, "note", b"after")
    await come_back()
    assert done.status is BackupStatus.DONE
    assert await scene.backup(planned) == done
    assert await scene.kinds(builder) == ["backup.started", "backup.finished"]
    assert (
        scene.backup_repository.repositories[builder.tenant_id].snapshots[done.snapshot or ""].files["note"]
        == b"before"
    )


async def test_a_restore_that_was_done_meanwhile_keeps_its_disk(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = await scene.world.create()
    backup = await scene.take(builder)
    app, now = scene.world.application, scene.world.clock.now()
    wanted = await app.store.write(lambda uow: restores.request(uow, app, scene.world.caller, backup, now))
    await scene.settle_backups()
    come_back = await _late(scene, monkeypatch)
    await scene.settle()
    done = await scene.restore(wanted)
    serving = await outcomes.deployed(app, builder.id, 2)
    await scene.write(serving, "note", b"written since")
    await scene.world.reached(builders.stop, serving)
    await come_back()
    assert done.status is RestoreStatus.DONE
    assert await scene.restore(wanted) == done
    assert scene.files(serving.disk)["note"] == b"written since"


async def test_failed_builder_without_a_disk_has_no_backups_that_fail(scene: Scene) -> None:
    world = scene.world
    world.scanner.dislikes = {"open_shell": "MAL-reverse-shell"}
    with pytest.raises(ReviewFailed):
        await world.create(BundleFile("main.py", b"open_shell()\n"), name="refused", backup_interval_hours=1)
    world.engine.behave("broken", Behaviour(listens_at=None, exits_at=0, exit_code=1))
    with pytest.raises(StartFailed):
        await world.create(name="released", entrypoint="broken", backup_interval_hours=1)
    world.clock.move(2 * 24 * 3600)
    await scene.settle()
    await RetentionJob(world.application).release_failed_disks()
    await world.until(lambda: not world.engine.known_disks)
    made = [await world.read(lambda uow: uow.builders.by_name(world.caller.tenant_id, "released"))]
    made.append(await world.read(lambda uow: uow.builders.by_name(world.caller.tenant_id, "refused")))
    before = [await scene.of(builder) for builder in made if builder]
    for _ in range(3):
        world.clock.move(24 * 3600)
        await scene.schedule.plan()
        await scene.settle()
    after = [await scene.of(builder) for builder in made if builder]
    assert after == before
    assert BackupStatus.FAILED not in [one.status for found in after for one in found]

    world.engine.behave("broken", Behaviour())
    [released, _] = made
    assert released
    await world.reached(builders.start, released)
    world.clock.move(3600)
    await scene.schedule.plan()
    await scene.settle()
    newest, *_ = await scene.of(released)
    assert newest.status is BackupStatus.DONE
