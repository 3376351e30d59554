"""A member of the cluster is lost: its builders say so, wait for it, or get their newest backup on another member."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.backups.conftest import Scene

from builderd.builders import service as builders
from builderd.builders.model import Builder, Status
from builderd.core.errors import EngineUnavailable
from builderd.core.ids import DiskId, SandboxId
from builderd.core.members import MemberAway, MemberReport
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.engine.port import DiskReport
from builderd.reconciler import reconciler
from builderd.reconciler.members import LostMembers
from builderd.sandboxes.model import SandboxReport


@pytest.fixture(autouse=True)
def only_checks_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "MEMBERS_INTERVAL", 3600.0)


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


async def test_recovery_under_way_goes_on_after_a_restart_of_the_service(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write-offs are in the memory of the earlier process alone."""
    builder, engine = await on_node2(scene), scene.world.engine
    await scene.take(builder)
    disk = engine.known_disks[builder.disk]
    lose(scene, given_up=True)
    await LostMembers(scene.world.application).check()
    await scene.world.until(lambda: _recovers(scene, builder))
    # The engine of the new process knows the disk: it is one of a member that is away, and nothing starts on it.
    engine.known_disks[builder.disk] = disk
    make_node2_away(scene, monkeypatch)
    await LostMembers(scene.world.application).check()
    assert builder.disk not in engine.known_disks
    await scene.settle()
    back = await scene.world.until_status(builder, Status.RUNNING)
    await scene.world.until(lambda: _is_on(scene, builder, "node1"))
    assert back.disk != builder.disk


async def _recovers(scene: Scene, builder: Builder) -> bool:
    return bool(await scene.world.read(lambda uow: uow.restores.open_of(builder.id)))


async def _is_on(scene: Scene, builder: Builder, member: str) -> bool:
    return (await scene.world.builder(builder)).location == member


async def test_disk_is_not_written_off_once_its_member_is_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    builder, engine = await on_node2(scene), scene.world.engine
    await scene.take(builder)
    lose(scene, given_up=True)
    away = list(engine.cluster)
    looks = 0

    async def members() -> Sequence[MemberReport]:
        nonlocal looks
        looks += 1
        return away if looks == 1 else [MemberReport("node2", "10.0.0.2")]

    monkeypatch.setattr(engine, "members", members)
    await LostMembers(scene.world.application).check()
    assert looks >= 2
    assert builder.disk in engine.known_disks


async def test_sandbox_planned_before_its_disk_was_replaced_never_starts(scene: Scene) -> None:
    builder, engine = await on_node2(scene), scene.world.engine
    members = LostMembers(scene.world.application)
    await scene.write(builder, "note", b"kept")
    await scene.take(builder)
    await scene.world.reached(builders.stop, builder)
    # It is planned, and its member lost before it starts: the start fails from then on.
    engine.fail_next("start", *[EngineUnavailable("The member node2 does not answer.")] * 1000)
    await scene.world.want(builders.start, builder)
    await scene.world.until(lambda: _was_tried(scene))
    old = engine.known_disks[builder.disk]
    lose(scene, given_up=True)
    await members.check()

    async def is_replaced() -> bool:
        await scene.settle()
        return (await scene.world.builder(builder)).disk != builder.disk

    await scene.world.until(is_replaced)
    engine.known_disks[builder.disk] = old  # the member is back
    engine._failures["start"].clear()
    back = await scene.world.until_status(builder, Status.RUNNING)
    (running,) = scene.world.running
    assert running.spec.disk == back.disk
    assert scene.files(back.disk)["note"] == b"kept"


async def _was_tried(scene: Scene) -> bool:
    return len(scene.world.engine._failures["start"]) < 1000


async def test_member_that_returns_during_a_restart_of_the_service_is_noticed(scene: Scene) -> None:
    builder, application = await on_node2(scene), scene.world.application
    lose(scene)
    await LostMembers(application).check()
    scene.world.engine.cluster = [MemberReport("node2", "10.0.0.2")]
    after = LostMembers(application)
    await after.check()
    await after.check()
    await LostMembers(application).check()
    assert await told(scene, builder) == ["member.lost", "member.returned"]
    assert "answers again" in (await scene.world.builder(builder)).status_reason


async def test_absence_of_a_member_writes_nothing_for_builders_that_wait(scene: Scene) -> None:
    builder, store = await on_node2(scene), CountedStore(scene.world.application.store)
    members = LostMembers(replace(scene.world.application, store=store))  # type: ignore[arg-type]
    lose(scene, given_up=True)
    await members.check()
    before, store.writes = await scene.world.builder(builder), 0
    await members.check()
    assert store.writes == 0
    assert await scene.world.builder(builder) == before


def make_node2_away(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine refuse calls about disks and sandboxes of node2, but for notes that they are to end."""
    engine = scene.world.engine
    report, disk, known = engine.report, engine.disk, set(engine.known_disks)

    async def report_of(sandbox: SandboxId) -> SandboxReport:
        found = engine.known.get(sandbox)
        if found is not None and found.end is None and found.member == "node2":
            raise MemberAway("The member node2 does not answer.")
        return await report(sandbox)

    async def disk_of(wanted: DiskId) -> DiskReport | None:
        if wanted in engine.known_disks and wanted in known:
            raise MemberAway("The member node2 does not answer.")
        return await disk(wanted)

    monkeypatch.setattr(engine, "report", report_of)
    monkeypatch.setattr(engine, "disk", disk_of)


async def test_builder_of_a_lost_member_is_stopped_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = await on_node2(scene)
    make_node2_away(scene, monkeypatch)
    stopped = await scene.world.reached(builders.stop, builder)
    assert stopped.status is Status.STOPPED
    (sandbox,) = scene.world.engine.known.values() or [None]
    assert sandbox is None or sandbox.end is not None


@pytest.mark.parametrize("interval", [0, 24])
async def test_builder_of_a_lost_member_is_deleted_at_once_and_its_backups_stay(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, interval: int
) -> None:
    builder = await on_node2(scene)
    await scene.take(builder)
    await scene.world.change(builder, backup_interval_hours=interval)
    make_node2_away(scene, monkeypatch)
    await scene.world.reached(builders.delete, builder)
    assert ("delete_disk", builder.disk) in scene.world.engine.calls
    assert len(await scene.of(builder)) == 1


class CountedStore:
    def __init__(self, store: Store) -> None:
        self._write = store.write
        self.read = store.read
        self.writes = 0

    async def write(self, work: Callable[[UnitOfWork], Any]) -> Any:
        self.writes += 1
        return await self._write(work)


async def _has_no_spare_disk(scene: Scene, builder: Builder) -> bool:
    return not (await scene.world.builder(builder)).spare_disks


async def test_builder_without_a_backup_keeps_waiting_and_gets_no_empty_disk(scene: Scene) -> None:
    builder, members = await on_node2(scene), LostMembers(scene.world.application)
    lose(scene, given_up=True)
    await members.check()
    await scene.settle()
    found = await scene.world.builder(builder)
    assert (found.disk, found.location) == (builder.disk, "node2")
    assert builder.disk in scene.world.engine.known_disks


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
