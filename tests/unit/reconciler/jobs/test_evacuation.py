"""A member of the cluster is evacuated: its builders move to another one, their files with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import pytest
from tests.application import ENTRYPOINT, World, fake_world, hurry
from tests.fakes.sandboxes import Behaviour

from builderd.domain.builders import Builder, Desired, Status
from builderd.domain.errors import NoCapacity
from builderd.domain.ids import DiskId
from builderd.domain.members import MemberReport
from builderd.domain.previews import RouteState
from builderd.domain.versions import VersionStatus
from builderd.reconciler.jobs.evacuation import RETRY, Evacuation
from builderd.reconciler.loop import reconciler
from builderd.services import builders

RELEASE = "python3 main.py migrate"


@dataclass
class Scene:
    """A world whose engine has two members; disks made so far lie on node2, those made later on node1."""

    world: World
    evacuation: Evacuation
    old: set[DiskId]

    def evacuate(self) -> None:
        """Let node2 be emptied: what starts from now on starts on node1."""
        engine = self.world.engine
        self.old.update(engine.disks)
        engine.cluster = [MemberReport("node1", "10.0.0.1"), MemberReport("node2", "10.0.0.2", evacuating=True)]
        engine.member = "node1"

    async def write(self, builder: Builder, name: str, content: bytes) -> None:
        self.world.engine.disks[(await self.world.builder(builder)).disk].files[name] = content

    async def files(self, builder: Builder) -> dict[str, bytes]:
        return self.world.engine.disks[(await self.world.builder(builder)).disk].files

    async def told(self, builder: Builder) -> list[str]:
        return [one.type for one in await self.world.events(builder) if one.type.startswith("member.")]


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    hurry(monkeypatch.setattr)
    monkeypatch.setattr(reconciler, "MEMBERS_INTERVAL", 3600.0)
    async with fake_world() as world, world.reconciling():
        scene = Scene(world, Evacuation(world.application), set())
        engine = world.engine
        engine.cluster = [MemberReport("node1", "10.0.0.1"), MemberReport("node2", "10.0.0.2")]
        engine.member = "node2"

        async def disk_members() -> Mapping[DiskId, str]:
            return {disk: "node2" if disk in scene.old else "node1" for disk in engine.disks}

        monkeypatch.setattr(engine, "disk_members", disk_members)
        yield scene


async def test_running_builder_is_handed_over_to_itself_on_another_member(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    await scene.write(builder, "note", b"kept")
    scene.evacuate()
    held: list[RouteState] = []
    clone = world.engine.clone_disk

    async def clone_held(source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
        route = await world.previews.get(builder.host)
        assert route is not None
        held.append(route.state)
        await clone(source, target, size_bytes, for_backup=for_backup)

    world.engine.clone_disk = clone_held  # type: ignore[method-assign]
    await scene.evacuation.check()
    moved = await world.builder(builder)
    assert (moved.status, moved.location, moved.version) == (Status.RUNNING, "node1", builder.version)
    assert (moved.candidate, moved.handover) == (None, None)
    assert moved.disk != builder.disk
    assert (await scene.files(builder))["note"] == b"kept"
    # Copied while it served, completed while requests were held.
    assert held == [RouteState.PAUSED]
    assert [name for name, _ in world.engine.calls if name in ("stage_disk", "clone_disk")] == [
        "stage_disk",
        "clone_disk",
    ]
    (version,) = await world.read(lambda uow: uow.versions.list(builder.id))
    assert version.status is VersionStatus.DEPLOYED
    assert await scene.told(builder) == ["member.moving"]
    assert "node2" in moved.status_reason
    await world.until(lambda: _is_gone(scene, builder.disk))
    await scene.evacuation.check()
    assert (await world.builder(builder)).generation == moved.generation


async def _is_gone(scene: Scene, disk: DiskId) -> bool:
    return disk not in scene.world.engine.disks


async def test_release_command_does_not_run_again(scene: Scene) -> None:
    world = scene.world
    world.engine.behave(RELEASE, Behaviour(exits_at=1))
    builder = await world.create(release=RELEASE)
    started = len([name for name, _ in world.engine.calls if name == "start"])
    scene.evacuate()
    await scene.evacuation.check()
    moved = await world.builder(builder)
    assert (moved.status, moved.location) == (Status.RUNNING, "node1")
    (version,) = await world.read(lambda uow: uow.versions.list(builder.id))
    assert version.released
    # The release and the app at first, the app alone now.
    assert started == 2
    assert len([name for name, _ in world.engine.calls if name == "start"]) == 3


async def test_app_that_does_not_come_up_elsewhere_serves_on_where_it_was(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    await scene.write(builder, "note", b"kept")
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None, exits_at=1, exit_code=3), Behaviour())
    scene.evacuate()
    await scene.evacuation.check()
    await world.until(lambda: _serves(scene, builder))
    kept = await world.builder(builder)
    assert kept.disk == builder.disk
    assert "serves on where it was" in kept.status_reason
    (version,) = await world.read(lambda uow: uow.versions.list(builder.id))
    assert version.status is VersionStatus.DEPLOYED
    # Its app is not interrupted again and again.
    await scene.evacuation.check()
    assert (await world.builder(builder)).generation == kept.generation
    world.clock.move(RETRY.total_seconds() + 1)
    await scene.evacuation.check()
    assert (await world.builder(builder)).location == "node1"
    assert (await scene.files(builder))["note"] == b"kept"


async def _serves(scene: Scene, builder: Builder) -> bool:
    found = await scene.world.builder(builder)
    return found.settled and found.status is Status.RUNNING and found.handover is None and found.candidate is None


async def test_stopped_builder_gets_its_files_on_another_member_and_stays_stopped(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    await scene.write(builder, "note", b"kept")
    await world.reached(builders.stop, builder)
    scene.evacuate()
    await scene.evacuation.check()
    moved = await world.builder(builder)
    assert (moved.status, moved.location) == (Status.STOPPED, "node1")
    await world.until(lambda: _is_gone(scene, builder.disk))
    assert (await scene.files(builder))["note"] == b"kept"
    started = await world.reached(builders.start, builder)
    assert started.status is Status.RUNNING
    assert "member.moved" in await scene.told(builder)


@pytest.mark.parametrize("runs", [True, False])
async def test_copy_is_adopted_before_the_record_that_gives_it_to_the_builder(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    """A service that is killed in between does not come back to it."""
    world = scene.world
    builder = await world.create()
    if not runs:
        await world.reached(builders.stop, builder)
    scene.evacuate()
    adopt, owned = world.engine.adopt_copy, [builder.disk]

    async def note_owner(disk: DiskId) -> None:
        await adopt(disk)
        owned.append((await world.builder(builder)).disk)

    monkeypatch.setattr(world.engine, "adopt_copy", note_owner)
    await scene.evacuation.check()
    moved = await world.builder(builder)
    assert moved.disk != builder.disk
    assert owned == [builder.disk, builder.disk]
    report = await world.engine.disk(moved.disk)
    assert report is not None
    assert report.copy_of is None


async def test_builder_that_is_started_while_its_disk_is_copied_is_left_alone(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    await world.reached(builders.stop, builder)
    scene.evacuate()
    clone = world.engine.clone_disk

    async def clone_and_start(source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
        await clone(source, target, size_bytes, for_backup=for_backup)
        await world.want(builders.start, builder)

    world.engine.clone_disk = clone_and_start  # type: ignore[method-assign]
    await scene.evacuation.check()
    left = await world.builder(builder)
    assert (left.disk, left.desired) == (builder.disk, Desired.RUNNING)
    assert set(world.engine.disks) == {builder.disk}


async def test_job_that_runs_is_moved_once_it_has_ended(scene: Scene) -> None:
    world = scene.world
    builder = await world.ask_job()
    await world.until(lambda: _runs(scene))
    scene.evacuate()
    await scene.evacuation.check()
    assert (await world.builder(builder)).disk == builder.disk
    (sandbox,) = world.running
    world.engine.end(sandbox.spec.id)
    await world.until_status(builder, Status.COMPLETED)
    await scene.evacuation.check()
    moved = await world.builder(builder)
    assert (moved.location, moved.status) == ("node1", Status.COMPLETED)


async def _runs(scene: Scene) -> bool:
    return bool(scene.world.running)


async def test_builders_stay_where_they_are_when_no_other_member_takes_them(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    scene.evacuate()
    world.engine.fail_next("stage_disk", NoCapacity("No member of the cluster takes new disks."))
    await scene.evacuation.check()
    left = await world.builder(builder)
    assert (left.disk, left.generation) == (builder.disk, builder.generation)
    assert left.status is Status.RUNNING


async def test_move_that_fails_in_any_way_keeps_no_other_builder_from_being_moved(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    world = scene.world
    both = [await world.create(name=name) for name in ("one", "two")]
    scene.evacuate()
    world.engine.fail_next("stage_disk", ValueError("an answer of Incus that nobody expected"))
    world.engine.fail_next("delete_disk", NoCapacity("No member answers."))
    await scene.evacuation.check()
    moved = [await world.builder(one) for one in both]
    assert sorted(one.location or "" for one in moved) == ["node1", "node2"]
    assert "builder not moved, retrying later" in caplog.text
    assert "copy of a disk not deleted" in caplog.text
    world.clock.move(RETRY.total_seconds() + 1)
    await scene.evacuation.check()
    assert {(await world.builder(one)).location for one in both} == {"node1"}


async def test_deletion_during_a_move_leaves_no_disk(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    scene.evacuate()
    clone = world.engine.clone_disk

    async def clone_and_delete(source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
        await clone(source, target, size_bytes, for_backup=for_backup)
        await world.want(builders.delete, builder)

    world.engine.clone_disk = clone_and_delete  # type: ignore[method-assign]
    await scene.evacuation.check()
    await world.until(lambda: _has_no_disks(scene))
    assert (await world.builder(builder)).status is Status.DELETED


async def _has_no_disks(scene: Scene) -> bool:
    return not scene.world.engine.disks
