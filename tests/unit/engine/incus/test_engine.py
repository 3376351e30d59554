"""The engine while members return, without a quorum, and while disks move: cut off, the original stays the disk."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.engine.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.core.errors import EngineUnavailable, NoCapacity
from builderd.core.ids import DiskId
from builderd.core.resources import GB, Capacity
from builderd.engine.incus import disks, network
from builderd.engine.incus.client import IncusClient, IncusError, IncusOptions
from builderd.engine.incus.cluster import Cluster, Member
from builderd.engine.incus.disks import Disks, Files
from builderd.engine.incus.engine import Machine
from builderd.files.model import Condition

NODE2 = Member("node2", "10.0.0.2", online=True)
ROUTED = {"ip": "10.99.0.20", "builder": "b"}


@pytest.fixture
def ip(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands of ip(8) that were given."""
    commands: list[str] = []

    async def record(*words: str, lines: Iterable[str] = ()) -> str:
        commands.append("\n".join(lines) or " ".join(words))
        return "10.99.0.99 via 10.0.0.2 proto 152\n" if words[1] == "show" else ""

    monkeypatch.setattr(network, "_ip", record)
    return commands


async def returned(machine: Machine) -> None:
    """Have node2 answer again; the others are away."""
    machine.members._seen = {"node2": NODE2}
    await machine.on_change()


async def test_only_what_an_earlier_service_left_on_members_that_answer_is_removed() -> None:
    incus = ScriptedIncus()
    machine = machine_on(incus)
    machine.members._away = {"node1": 0.0}
    incus.has_instance("build-left")
    incus.has_instance("build-elsewhere", "node1")
    incus.has_instance("helper-node2-old")
    incus.has_instance("s-1", **ROUTED)
    incus.has_volume("new-left")
    incus.has_volume("new-elsewhere", "node1")
    incus.has_volume("disk-1")
    await machine.remove_left_overs()
    assert set(incus.instances) == {"build-elsewhere", "s-1"}
    assert set(incus.volumes) == {"new-elsewhere", "disk-1"}


async def test_route_of_an_app_that_starts_meanwhile_stays(ip: list[str]) -> None:
    incus = ScriptedIncus()
    machine = machine_on(incus)
    incus.has_instance("s-1", **ROUTED)
    incus.has_instance("s-2", "node3", ip="10.99.0.21")
    # Of an app that the list of instances does not have yet.
    await machine.sandboxes._routes.add("10.99.0.30", "node2")
    ip.clear()
    await returned(machine)
    assert ip == ["route replace 10.99.0.20/32 via 10.0.0.2 proto 152"]


async def test_start_of_the_service_removes_routes_of_apps_that_are_gone(ip: list[str]) -> None:
    incus = ScriptedIncus()
    machine = machine_on(incus)
    incus.has_instance("s-1", **ROUTED)
    await machine.sandboxes.adopt()
    assert "route del 10.99.0.99/32 proto 152" in ip
    assert "route replace 10.99.0.20/32 via 10.0.0.2 proto 152" in ip


async def test_calls_are_refused_at_once_but_those_that_tell_of_an_end(tmp_path: Path) -> None:
    client = IncusClient(IncusOptions(socket=tmp_path / "none"))
    client.unavailable_reason = lambda: "no quorum"
    try:
        for path in ("/instances", "/instances/s-1/state", ""):
            with pytest.raises(EngineUnavailable, match="no quorum") as refused:
                await client.get(path)
            assert refused.value.retry_after
        for path in ("/cluster/members", "/operations/1/wait"):
            with pytest.raises(EngineUnavailable, match="does not answer"):
                await client.get(path)
    finally:
        await client.close()


ONE = DiskId("one")
MOVED_FROM = "user.builderd.moved_from"


class ScriptedVolumes:
    """Volumes by name and member. ``fails`` names methods that raise, after their work where ``late``."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], dict[str, str]] = {}
        self.fails: set[str] = set()
        self.late = False

    def has(self, member: str, **own: str) -> None:
        self.found["disk-one", member] = {"user.builderd.size": "7"} | {f"user.builderd.{k}": v for k, v in own.items()}

    def _called(self, method: str) -> None:
        if method in self.fails:
            raise IncusError(500, "broken pipe")

    async def find(self, name: str, member: str = "") -> dict[str, Any] | None:
        at = member or min((where for one, where in self.found if one == name), default="")
        config = self.found.get((name, at))
        return None if config is None else {"name": name, "location": at, "config": dict(config), "used_by": []}

    async def places(self, name: str) -> Sequence[str]:
        return [where for one, where in self.found if one == name]

    async def all(self) -> Sequence[dict[str, Any]]:
        return [{"name": name, "location": at, "config": dict(own)} for (name, at), own in self.found.items()]

    async def copy(self, source: str, target: str, size: int, own: dict[str, str], at: str, origin: str) -> None:
        assert (source, origin) in self.found
        assert (target, at) not in self.found
        self.found[target, at] = {f"user.builderd.{key}": value for key, value in own.items()}
        self._called("copy")

    async def delete(self, name: str, member: str = "") -> None:
        if not self.late:
            self._called("delete")
        self.found.pop((name, member), None)
        self._called("delete")

    async def change(self, name: str, member: str, own: dict[str, str]) -> None:
        self._called("change")
        self.found[name, member].update({f"user.builderd.{key}": value for key, value in own.items()})


class Scene:
    """A disk on node1, which is to be emptied."""

    def __init__(self) -> None:
        self.volumes = ScriptedVolumes()
        self.volumes.has("node1", bundle="b1")
        self.leaving = {"node1"}

        async def detach(name: str) -> None:
            assert name == "disk-one"

        self.uses = False

        @asynccontextmanager
        async def task(*_: object) -> AsyncIterator[None]:
            yield

        volumes, uses = self.volumes, lambda _: self.uses
        helper: Any = SimpleNamespace(detach=detach, is_using=uses, task=task)
        self.disks = Disks(
            *(volumes, lambda _: helper, self.place, lambda: self.leaving)  # type: ignore[arg-type]
        )
        self.helper = helper

    async def place(self) -> str:
        return "node2"

    async def move(self) -> str:
        return await self.disks.move(ONE, await self.disks.existing(ONE))

    async def report(self) -> tuple[str, str | None, bool]:
        """Return the disk's member and bundle, and whether it is to leave that member."""
        found = await self.disks.report(ONE)
        assert found
        return await self.disks.member(ONE), found.bundle_hash, found.is_leaving


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_disk_lies_on_another_member_alone_after_its_move(scene: Scene) -> None:
    assert await scene.report() == ("node1", "b1", True)
    assert await scene.move() == "node2"
    assert await scene.report() == ("node2", "b1", False)
    assert scene.volumes.found == {
        ("disk-one", "node2"): {"user.builderd.size": "7", "user.builderd.bundle": "b1", MOVED_FROM: ""}
    }


@pytest.mark.parametrize("failing", ["copy", "delete"])
async def test_disk_that_cannot_be_moved_stays_and_does_not_leave_for_some_minutes(
    scene: Scene, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.volumes.fails = {failing}
    assert await scene.move() == "node1"
    assert await scene.report() == ("node1", "b1", False)
    scene.volumes.fails = set()
    later = time.monotonic() + disks.RETRY_SECONDS
    monkeypatch.setattr(disks, "time", SimpleNamespace(monotonic=lambda: later))
    assert await scene.report() == ("node1", "b1", True)
    # What the app wrote meanwhile is moved, too: an earlier copy is not taken for it.
    scene.volumes.has("node1", bundle="b2")
    assert await scene.move() == "node2"
    assert await scene.report() == ("node2", "b2", False)
    assert len(scene.volumes.found) == 1


async def test_copy_is_the_disk_once_its_original_is_gone_after_an_error(scene: Scene) -> None:
    scene.volumes.fails, scene.volumes.late = {"delete"}, True
    await scene.move()
    assert await scene.report() == ("node2", "b1", False)


async def test_no_file_is_written_while_its_disk_moves_and_no_disk_moves_while_one_is(scene: Scene) -> None:
    scene.uses = True
    assert await scene.move() == "node1"
    assert await scene.report() == ("node1", "b1", False)
    scene.uses, copy = False, scene.volumes.copy
    files = Files(scene.disks, lambda _: scene.helper)

    async def copy_and_write(*given: Any) -> None:
        with pytest.raises(EngineUnavailable, match="try again"):
            await files.delete_file(ONE, "a", Condition())
        await copy(*given)

    scene.volumes.copy = copy_and_write  # type: ignore[assignment, method-assign]
    assert await scene.move() == "node2"


async def test_original_stays_after_a_move_that_an_earlier_service_left(scene: Scene) -> None:
    scene.volumes.has("node0", bundle="part", moved_from="node1")
    assert await scene.report() == ("node1", "b1", True)
    machine = machine_on(ScriptedIncus())
    machine.volumes = scene.volumes  # type: ignore[assignment]
    await machine.remove_left_overs()
    assert list(scene.volumes.found) == [("disk-one", "node1")]


async def test_copy_whose_original_an_earlier_service_deleted_is_the_disk(scene: Scene) -> None:
    scene.volumes.found.clear()
    scene.volumes.has("node2", bundle="b1", moved_from="node1")
    assert await scene.report() == ("node2", "b1", False)
    machine = machine_on(ScriptedIncus())
    machine.volumes = scene.volumes  # type: ignore[assignment]
    await machine.remove_left_overs()
    assert scene.volumes.found["disk-one", "node2"][MOVED_FROM] == ""


async def members_of(*found: Any, full: Sequence[str] = ()) -> Cluster:
    class Client:
        async def get(self, path: str, **query: str) -> Any:
            if path == "/resources":
                return {"cpu": {"total": 4}, "memory": {"used": GB, "total": 2 * GB}}
            if path.endswith("/resources"):
                return {"space": {"used": (99 if query["target"] in full else 1) * GB, "total": 100 * GB}}
            return [
                {"server_name": name, "url": f"https://10.0.0.{name[-1]}:8443", "status": status, "config": config}
                for name, status, config in found
            ]

    client: Any = Client()
    cluster = Cluster(client, IncusOptions())
    cluster.clustered = True
    return cluster


async def test_new_disks_avoid_members_that_are_evacuated_or_full() -> None:
    leaving = {"user.builderd.evacuate": "1"}
    cluster = await members_of(("node1", "Evacuated", {}), ("node2", "Online", leaving), ("node3", "Online", None))
    assert [(one.online, one.leaving) for one in await cluster.members()] == [(True, True), (True, True), (True, False)]
    assert await cluster.place(["node3", "node3"]) == "node3"
    online: list[Any] = [(name, "Online", {}) for name in ("node1", "node2", "node3")]
    cluster = await members_of(*online, full=["node1"])
    assert await cluster.place(["node2"]) == "node3"
    with pytest.raises(NoCapacity, match="nearly full on all members: the last tenth"):
        await (await members_of(*online, full=["node1", "node2", "node3"])).place(["node1"])
    cluster = await members_of(("node1", "Online", leaving), ("node2", "Offline", {}))
    with pytest.raises(NoCapacity, match="cluster status"):
        await cluster.place([])


@pytest.mark.parametrize(("full", "takes"), [(["node1"], True), (["node1", "node2"], False)])
async def test_use_is_summed_over_members_and_full_pools_take_no_disks(full: list[str], takes: bool) -> None:
    cluster = await members_of(("node1", "Online", {}), ("node2", "Online", {}), full=full)
    used = await cluster.use(4)
    assert (used.cpu, used.memory, used.disk_total, used.disks > 0) == (0, 2.0, 200, takes)
    assert used.capacity == Capacity(8, 4, 800)


async def test_capacity_counts_members_that_are_away_and_not_those_that_are_evacuated() -> None:
    machine = machine_on(ScriptedIncus())
    machine.members._seen = {
        "node1": Member("node1", "", online=True),
        "node2": Member("node2", "", online=False),
        "node3": Member("node3", "", online=True, leaving=True),
    }
    machine.capacities = {f"node{number}": Capacity(number, 1, 10 * number) for number in (1, 2, 3)}
    assert machine.capacity == Capacity(3, 2, 30)
    machine.members._away = {"node2": 0.0}
    await machine.measure()
    assert set(machine.capacities) == {"node1", "node2"}
