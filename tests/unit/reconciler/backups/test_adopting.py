"""After an earlier state was brought back: what the repository keeps is known again, and what it lost no longer."""

from __future__ import annotations

import pytest
from tests.unit.reconciler.backups.conftest import Scene

from builderd.domain.backups import Backup, BackupStatus
from builderd.domain.errors import BackupFailed
from builderd.domain.ids import BackupId, BuilderId
from builderd.ports.backup_repository import SaveRequest
from builderd.reconciler.backups.upkeep import adopt
from builderd.services import backups, restores


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
    assert (again.snapshot, again.digest, again.status, again.version) == (
        *(newer.snapshot, newer.digest, BackupStatus.DONE, newer.version),
    )
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
