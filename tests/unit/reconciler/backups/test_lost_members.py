"""A member of the cluster is lost: its builders say so, wait for it, or get their newest backup on another member."""

from __future__ import annotations

from tests.unit.reconciler.backups.conftest import Scene

from builderd.domain.builders import Builder, Status
from builderd.domain.members import MemberReport
from builderd.reconciler.jobs.lost_members import LostMembers
from builderd.services import builders


def lose(scene: Scene, *, given_up: bool = False) -> None:
    """Let node2 be away."""
    engine, now = scene.world.engine, scene.world.clock.now()
    engine.cluster = [MemberReport("node1", "10.0.0.1"), MemberReport("node2", "10.0.0.2", now, given_up)]
    engine.member = "node1"


async def on_node2(scene: Scene) -> Builder:
    scene.world.engine.cluster = [MemberReport("node1", "10.0.0.1"), MemberReport("node2", "10.0.0.2")]
    scene.world.engine.member = "node2"
    builder = await scene.world.create()
    assert builder.location == "node2"
    return builder


async def told(scene: Scene, builder: Builder) -> list[str]:
    return [one.type for one in await scene.world.events(builder) if one.type.startswith("member.")]


async def test_loss_and_return_are_one_event_each_for_the_builders_of_the_member(scene: Scene) -> None:
    builder, members = await on_node2(scene), LostMembers(scene.world.application)
    scene.world.engine.member = "node1"
    other = await scene.world.create(name="other")
    await members.check()
    assert await told(scene, builder) == []
    lose(scene)
    await members.check()
    await members.check()
    lost = await scene.world.builder(builder)
    assert lost.status is Status.RUNNING
    assert "node2" in lost.status_reason
    assert "does not answer" in lost.status_reason
    scene.world.engine.cluster = [MemberReport("node2", "10.0.0.2")]
    await members.check()
    await members.check()
    assert await told(scene, builder) == ["member.lost", "member.returned"]
    assert "answers again" in (await scene.world.builder(builder)).status_reason
    assert await told(scene, other) == []


async def test_builder_with_a_backup_is_restored_on_another_member(scene: Scene) -> None:
    builder, members = await on_node2(scene), LostMembers(scene.world.application)
    await scene.write(builder, "note", b"kept")
    await scene.take(builder)
    lose(scene, given_up=True)
    await members.check()

    async def is_back() -> bool:
        await scene.settle()
        await members.check()
        found = await scene.world.builder(builder)
        return found.location == "node1"

    await scene.world.until(is_back)
    back = await scene.world.until_status(builder, Status.RUNNING)
    assert back.disk != builder.disk
    assert scene.files(back.disk)["note"] == b"kept"
    await scene.world.until(lambda: _has_no_spare_disk(scene, builder))
    assert scene.world.engine.calls.count(("delete_disk", builder.disk)) >= 1


async def _has_no_spare_disk(scene: Scene, builder: Builder) -> bool:
    return not (await scene.world.builder(builder)).spare_disks


async def test_builder_without_a_backup_keeps_waiting_and_gets_no_empty_disk(scene: Scene) -> None:
    builder, members = await on_node2(scene), LostMembers(scene.world.application)
    lose(scene, given_up=True)
    await members.check()
    await scene.settle()
    found = await scene.world.builder(builder)
    assert (found.disk, found.location) == (builder.disk, "node2")
    assert builder.disk in scene.world.engine.disks


async def test_stopped_builder_is_not_restored(scene: Scene) -> None:
    builder, members = await on_node2(scene), LostMembers(scene.world.application)
    await scene.take(builder)
    await scene.world.reached(builders.stop, builder)
    lose(scene, given_up=True)
    await members.check()
    await scene.settle()
    found = await scene.world.builder(builder)
    assert (found.disk, found.status) == (builder.disk, Status.STOPPED)
    assert await told(scene, builder) == ["member.lost"]


async def test_engine_that_is_not_ready_is_not_asked(scene: Scene) -> None:
    builder, members = await on_node2(scene), LostMembers(scene.world.application)
    lose(scene)
    scene.world.engine.ready = False
    await members.check()
    assert await told(scene, builder) == []
