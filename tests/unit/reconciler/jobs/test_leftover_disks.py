"""Disks of a cluster without a record go after an hour, if they are copies or blank; no other one ever does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from tests.application import World, fake_world, hurry
from tests.fakes.disk_files import FakeDisk

from builderd.domain.builders import Builder, Candidate, Desired, Status
from builderd.domain.errors import InvalidState
from builderd.domain.ids import DiskId, new_id
from builderd.domain.members import MemberAway, MemberReport
from builderd.ports.engine import DiskReport, Readiness
from builderd.ports.store import UnitOfWork
from builderd.reconciler.jobs.leftover_disks import UNNAMED_FOR, LeftoverDisks
from builderd.services import builders

GB = 1_000_000_000


@dataclass
class Scene:
    world: World
    sweep: LeftoverDisks

    def add(self, *, copy_of: DiskId | None = None, bundle_hash: str | None = None) -> DiskId:
        """Make a disk that no record names."""
        disk = DiskId(new_id())
        self.world.engine.disks[disk] = FakeDisk(GB, {"note": b"x"}, bundle_hash, copy_of=copy_of)
        return disk

    async def after_an_hour(self) -> set[DiskId]:
        """Look, look again an hour later, and return the disks that are left."""
        await self.sweep.check()
        self.world.clock.move(UNNAMED_FOR.total_seconds())
        await self.sweep.check()
        return set(self.world.engine.disks)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    hurry(monkeypatch.setattr)
    async with fake_world() as world, world.reconciling():
        world.engine.cluster = [MemberReport("node1", "10.0.0.1"), MemberReport("node2", "10.0.0.2")]
        world.engine.member = "node1"
        yield Scene(world, LeftoverDisks(world.application))


async def test_copies_and_blank_disks_without_a_record_go_after_an_hour(scene: Scene) -> None:
    builder = await scene.world.create()
    scene.add(copy_of=builder.disk, bundle_hash="a" * 64)
    scene.add()
    await scene.sweep.check()
    scene.world.clock.move((UNNAMED_FOR - timedelta(seconds=1)).total_seconds())
    await scene.sweep.check()
    assert len(scene.world.engine.disks) == 3, "they may be of work that goes on"
    scene.world.clock.move(1)
    await scene.sweep.check()
    assert set(scene.world.engine.disks) == {builder.disk}


async def test_disk_with_files_of_its_own_stays(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """After a restore of an older database, a builder that it does not know has such a disk."""
    disk = scene.add(bundle_hash="a" * 64)
    assert disk in await scene.after_an_hour()
    assert disk in await scene.after_an_hour()
    assert caplog.text.count("disk without a record stays") == 1


async def test_last_copy_of_a_disk_that_a_builder_needs_stays(scene: Scene) -> None:
    """After a restore of an older database, a builder that has moved since names the disk that it had before."""
    builder = await scene.world.create()
    await scene.world.reached(builders.stop, builder)
    disk = scene.add(copy_of=builder.disk, bundle_hash="a" * 64)
    original = scene.world.engine.disks.pop(builder.disk)
    assert disk in await scene.after_an_hour()
    scene.world.engine.disks[builder.disk] = original
    await scene.sweep.check()
    assert disk not in scene.world.engine.disks


async def test_copy_of_a_deleted_builders_disk_goes(scene: Scene) -> None:
    builder = await scene.world.create()
    disk = scene.add(copy_of=builder.disk, bundle_hash="a" * 64)
    await scene.world.reached(builders.delete, builder)
    assert disk not in await scene.after_an_hour()


@pytest.mark.parametrize("restored", ["a row that names an earlier disk", "no row"])
async def test_disk_on_which_a_change_of_settings_runs_stays_after_a_restore_of_an_older_database(
    scene: Scene, restored: str
) -> None:
    """The change runs on a copy, to which nothing is written where the code is the same."""
    builder = await scene.world.create()
    for value in ("1", "2"):
        await scene.world.configure(builder, env={"N": value})
    changed = await scene.world.reached(builders.stop, builder)
    assert changed.disk != builder.disk

    async def dropped() -> bool:
        return not (await scene.world.builder(builder)).spare_disks

    await scene.world.until(dropped)
    disks = scene.world.engine.disks
    assert set(disks) == {changed.disk}
    disks[builder.disk] = FakeDisk(GB, {}, "a" * 64)

    def as_before(uow: UnitOfWork) -> None:
        found = uow.builders.get(builder.id, lock=True)
        assert found is not None
        named = replace(found, disk=builder.disk)
        gone = replace(named, status=Status.DELETED, desired=Desired.DELETED, deleted_at=scene.world.clock.now())
        uow.builders.save(gone if restored == "no row" else named)

    await scene.world.application.store.write(as_before)
    assert changed.disk in await scene.after_an_hour()


async def no_disk_yet(_: DiskId) -> DiskReport | None:
    return None


async def test_copy_that_took_more_than_an_hour_has_an_hour_from_its_end(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = await scene.world.create()
    disk = scene.add(copy_of=builder.disk)

    with monkeypatch.context() as patch:
        patch.setattr(scene.world.engine, "disk", no_disk_yet)
        await scene.after_an_hour()
    scene.world.clock.move(1)
    await scene.sweep.check()
    assert disk in scene.world.engine.disks
    assert disk not in await scene.after_an_hour()


async def test_disk_that_cannot_be_removed_keeps_no_other_one(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = await scene.world.create()
    used, other = scene.add(copy_of=builder.disk), scene.add(copy_of=builder.disk)
    delete = scene.world.engine.delete_disk

    async def unless_used(disk: DiskId) -> None:
        if disk == used:
            raise InvalidState(f"A sandbox runs on the disk {disk}: stop it first.")
        await delete(disk)

    monkeypatch.setattr(scene.world.engine, "delete_disk", unless_used)
    assert await scene.after_an_hour() == {builder.disk, used}
    assert other not in scene.world.engine.disks


@pytest.mark.parametrize("kind", ["builder", "spare", "candidate"])
async def test_disk_that_a_record_names_stays(scene: Scene, kind: str) -> None:
    builder = await scene.world.create()
    await scene.world.reached(builders.stop, builder)
    disk = scene.add(copy_of=builder.disk)

    def name(uow: UnitOfWork) -> None:
        found = uow.builders.get(builder.id, lock=True)
        assert found is not None
        uow.builders.save(_named(found, kind, disk))

    async def delete_disk(disk: DiskId) -> None:
        raise AssertionError(f"{disk} has a record")

    scene.world.engine.delete_disk = delete_disk  # type: ignore[method-assign]
    await scene.world.application.store.write(name)
    assert disk in await scene.after_an_hour()


def _named(builder: Builder, kind: str, disk: DiskId) -> Builder:
    if kind == "spare":
        return replace(builder, spare_disks=(disk,))
    if kind == "candidate":
        return replace(builder, candidate=Candidate(builder.version, disk))
    return replace(builder, disk=disk)


async def test_disk_on_a_member_that_is_away_goes_when_it_returns(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = await scene.world.create()
    disk = scene.add(copy_of=builder.disk, bundle_hash="a" * 64)
    other = scene.add(copy_of=builder.disk, bundle_hash="a" * 64)
    look = scene.world.engine.disk

    async def away(asked: DiskId) -> DiskReport | None:
        if asked == disk:
            raise MemberAway("The member node2 does not answer.")
        return await look(asked)

    with monkeypatch.context() as patch:
        patch.setattr(scene.world.engine, "disk", away)
        assert await scene.after_an_hour() == {builder.disk, disk}
        assert other not in scene.world.engine.disks
    await scene.sweep.check()
    assert set(scene.world.engine.disks) == {builder.disk}


async def test_copy_under_way_and_an_engine_that_is_not_ready_are_left_alone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = await scene.world.create()
    disk = scene.add(copy_of=builder.disk)

    with monkeypatch.context() as patch:
        patch.setattr(scene.world.engine, "disk", no_disk_yet)
        assert disk in await scene.after_an_hour()
    with monkeypatch.context() as patch:
        patch.setattr(scene.world.engine, "readiness", lambda: Readiness(False, "no quorum"))
        assert disk in await scene.after_an_hour()


async def test_disks_of_one_machine_are_left_alone(scene: Scene) -> None:
    disk = scene.add()
    scene.world.engine.cluster = []
    assert disk in await scene.after_an_hour()
