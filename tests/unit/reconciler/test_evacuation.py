"""A member of the cluster is evacuated: its builders move to another one, their files with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import pytest
from tests.application import ENTRYPOINT, World, fake_world, hurry
from tests.fakes.sandboxes import Behaviour

from builderd.builders import service as builders
from builderd.builders.model import Builder, Status
from builderd.core.errors import NoCapacity
from builderd.core.ids import DiskId
from builderd.core.members import MemberReport
from builderd.previews.model import RouteState
from builderd.reconciler import reconciler
from builderd.reconciler.members import Evacuation

RELEASE = "python3 main.py migrate"


@dataclass
class Scene:
    """A world whose engine has two members; disks lie on node2 until they are moved to node1."""

    world: World
    evacuation: Evacuation

    def evacuate(self) -> None:
        """Let node2 be emptied: what starts from now on starts on node1."""
        engine = self.world.engine
        engine.leaving.update(engine.known_disks)
        engine.cluster = [MemberReport("node1", "10.0.0.1"), MemberReport("node2", "10.0.0.2", evacuating=True)]
        engine.member = "node1"

    async def write(self, builder: Builder, name: str, content: bytes) -> None:
        self.world.engine.known_disks[builder.disk].files[name] = content

    async def files(self, builder: Builder) -> dict[str, bytes]:
        return self.world.engine.known_disks[(await self.world.builder(builder)).disk].files

    async def told(self, builder: Builder) -> list[str]:
        return [one.type for one in await self.world.events(builder) if one.type.startswith("member.")]

    def moves(self) -> int:
        return [name for name, _ in self.world.engine.calls].count("move_disk")


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    hurry(monkeypatch.setattr)
    monkeypatch.setattr(reconciler, "MEMBERS_INTERVAL", 3600.0)
    async with fake_world() as world, world.reconciling():
        engine = world.engine
        engine.cluster = [MemberReport("node1", "10.0.0.1"), MemberReport("node2", "10.0.0.2")]
        engine.member = "node2"

        async def disk_members() -> Mapping[DiskId, str]:
            return {disk: "node2" if disk in engine.leaving else "node1" for disk in engine.known_disks}

        monkeypatch.setattr(engine, "disk_members", disk_members)
        yield Scene(world, Evacuation(world.application))


async def test_running_builder_stops_moves_and_starts_on_another_member(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    await scene.write(builder, "note", b"kept")
    scene.evacuate()
    held: list[RouteState] = []
    move = world.engine.move_disk

    async def move_held(disk: DiskId) -> str:
        route = await world.previews.get(builder.host)
        assert route is not None
        held.append(route.state)
        assert not world.running
        return await move(disk)

    world.engine.move_disk = move_held  # type: ignore[method-assign]
    await scene.evacuation.check()
    moved = await world.builder(builder)
    assert (moved.status, moved.location, moved.version) == (Status.RUNNING, "node1", builder.version)
    assert (moved.disk, moved.candidate, moved.handover) == (builder.disk, None, None)
    assert (await scene.files(builder))["note"] == b"kept"
    assert held == [RouteState.PAUSED]
    assert await scene.told(builder) == ["member.moved"]
    assert "node2" in moved.status_reason
    await scene.evacuation.check()
    assert (await world.builder(builder)).generation == moved.generation


async def test_release_command_does_not_run_again(scene: Scene) -> None:
    world = scene.world
    world.engine.behave(RELEASE, Behaviour(exits_at=1))
    builder = await world.create(release=RELEASE)
    scene.evacuate()
    await scene.evacuation.check()
    moved = await world.builder(builder)
    assert (moved.status, moved.location) == (Status.RUNNING, "node1")
    # The release and the app at first, the app alone now.
    assert len([name for name, _ in world.engine.calls if name == "start"]) == 3


async def test_disk_that_cannot_be_moved_lets_its_app_start_where_it_was_and_is_not_tried_at_once(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    scene.evacuate()

    async def stay(disk: DiskId) -> str:
        world.engine.leaving.discard(disk)
        world.engine.member = "node2"
        return "node2"

    world.engine.move_disk = stay  # type: ignore[method-assign]
    await scene.evacuation.check()
    kept = await world.builder(builder)
    assert (kept.status, kept.location) == (Status.RUNNING, "node2")
    assert await scene.told(builder) == []
    await scene.evacuation.check()
    assert (await world.builder(builder)).generation == kept.generation


async def test_app_that_does_not_come_up_elsewhere_fails_as_at_any_start(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    world.engine.behave(ENTRYPOINT, Behaviour(listens_at=None, exits_at=1, exit_code=3))
    scene.evacuate()
    await scene.evacuation.check()
    assert (await world.builder(builder)).status is Status.FAILED


async def test_stopped_builder_moves_with_its_files_and_stays_stopped(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    await scene.write(builder, "note", b"kept")
    await world.reached(builders.stop, builder)
    scene.evacuate()
    await scene.evacuation.check()
    moved = await world.builder(builder)
    assert (moved.status, moved.location) == (Status.STOPPED, "node1")
    assert (await scene.files(builder))["note"] == b"kept"
    assert await scene.told(builder) == ["member.moved"]
    started = await world.reached(builders.start, builder)
    assert started.status is Status.RUNNING
    assert scene.moves() == 1


async def test_builder_that_is_started_moves_first(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    await world.reached(builders.stop, builder)
    scene.evacuate()
    started = await world.reached(builders.start, builder)
    assert (started.status, started.location) == (Status.RUNNING, "node1")
    assert scene.moves() == 1


async def test_job_that_runs_is_moved_once_it_has_ended(scene: Scene) -> None:
    world = scene.world
    builder = await world.ask_job()
    await world.until(lambda: _runs(scene))
    scene.evacuate()
    await scene.evacuation.check()
    assert scene.moves() == 0
    (sandbox,) = world.running
    world.engine.end(sandbox.spec.id)
    await world.until_status(builder, Status.COMPLETED)
    await scene.evacuation.check()
    moved = await world.builder(builder)
    assert (moved.location, moved.status) == ("node1", Status.COMPLETED)


async def _runs(scene: Scene) -> bool:
    return bool(scene.world.running)


async def test_builders_run_on_where_they_are_when_no_other_member_takes_them(scene: Scene) -> None:
    world = scene.world
    builder = await world.create()
    scene.evacuate()
    world.engine.cluster = [one for one in world.engine.cluster if one.evacuating]
    await scene.evacuation.check()
    left = await world.builder(builder)
    assert (left.generation, left.status, scene.moves()) == (builder.generation, Status.RUNNING, 0)


async def test_move_that_fails_in_any_way_keeps_no_other_builder_from_being_moved(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    world = scene.world
    both = [await world.create(name=name) for name in ("one", "two")]
    for builder in both:
        await world.reached(builders.stop, builder)
    scene.evacuate()
    world.engine.fail_next("move_disk", NoCapacity("No member of the cluster takes new disks."))
    await scene.evacuation.check()
    moved = [await world.builder(one) for one in both]
    assert sorted(one.location or "" for one in moved) == ["node1", "node2"]
    assert "builder not moved, retrying" in caplog.text
    await scene.evacuation.check()
    assert {(await world.builder(one)).location for one in both} == {"node1"}
