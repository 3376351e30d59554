"""Moves of disks between members: staged, completed, given up; nobody writes to a disk whose copy is complete."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import moves as module
from builderd.adapters.engines.incus.cluster import Cluster, Member
from builderd.adapters.engines.incus.engine import IncusEngine
from builderd.adapters.engines.incus.errors import IncusError
from builderd.adapters.engines.incus.machine import Machine
from builderd.adapters.engines.incus.options import IncusOptions
from builderd.domain.errors import EngineUnavailable, NoCapacity, NotFound
from builderd.domain.ids import DiskId
from builderd.domain.quotas import Capacity

OLD, NEW = DiskId("old"), DiskId("new")


@pytest.fixture
def incus() -> ScriptedIncus:
    incus = ScriptedIncus()
    incus.has_volume("disk-old", "node1", size="1000", bundle="b1")
    return incus


@pytest.fixture
def machine(incus: ScriptedIncus, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = machine_on(incus)
    machine.helper("node2")._ready = True
    return machine


async def test_staged_copy_is_no_disk_until_it_is_complete(incus: ScriptedIncus, machine: Machine) -> None:
    assert await machine.moves.stage(OLD, NEW, None) == "node2"
    assert incus.volumes["disk-new"]["location"] == "node2"
    assert await machine.disks.report(NEW) is None
    assert await machine.moves.complete(OLD, NEW)
    report = await machine.disks.report(NEW)
    assert report
    assert (report.bundle_hash, report.size_bytes) == ("b1", 1000)


async def test_disk_that_was_not_staged_is_copied_as_ever(machine: Machine) -> None:
    assert not await machine.moves.complete(OLD, NEW)


async def test_nobody_writes_once_the_copy_is_complete_until_one_of_both_is_deleted(machine: Machine) -> None:
    await machine.moves.stage(OLD, NEW, None)
    async with machine.moves.writing(OLD):
        pass
    await machine.moves.complete(OLD, NEW)
    with pytest.raises(EngineUnavailable, match="try again"):
        async with machine.moves.writing(OLD):
            pass
    async with machine.moves.writing(NEW):
        pass
    machine.moves.forget(NEW)
    async with machine.moves.writing(OLD):
        pass


@pytest.mark.parametrize("deleted", [OLD, NEW])
@pytest.mark.parametrize("away", [False, True])
async def test_disk_is_written_again_once_it_or_its_copy_is_deleted_also_on_a_member_that_is_away(
    incus: ScriptedIncus, machine: Machine, deleted: DiskId, away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = SimpleNamespace(data_dir=Path("/none"))
    engine = IncusEngine(options, IncusOptions())
    engine._machine = machine
    await machine.moves.stage(OLD, NEW, None)
    await machine.moves.complete(OLD, NEW)
    if away:

        async def later(_: DiskId) -> bool:
            return True

        monkeypatch.setattr(machine.lost_disks, "delete_later", later)
    else:

        async def fail(*_: str) -> None:
            raise IncusError(500, "broken pipe")

        incus.before = fail
    with nullcontext() if away else pytest.raises(IncusError):
        await engine.delete_disk(deleted)
    async with machine.moves.writing(OLD):
        pass


async def test_file_that_is_being_written_is_in_the_copy(incus: ScriptedIncus, machine: Machine) -> None:
    await machine.moves.stage(OLD, NEW, None)
    async with machine.moves.writing(OLD):
        completing = asyncio.create_task(machine.moves.complete(OLD, NEW))
        await asyncio.sleep(0.01)
        copies = incus.changes.count(("POST", "/storage-pools/default/volumes/custom"))
        assert not completing.done()
    assert await completing
    assert incus.changes.count(("POST", "/storage-pools/default/volumes/custom")) == copies + 1


async def test_endless_upload_does_not_hold_requests_for_long(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITERS_SECONDS", 0.01)
    await machine.moves.stage(OLD, NEW, None)
    async with machine.moves.writing(OLD):
        with pytest.raises(EngineUnavailable, match="being written"):
            await machine.moves.complete(OLD, NEW)
        async with machine.moves.writing(OLD):
            pass
    assert await machine.moves.complete(OLD, NEW)


async def test_copy_that_fails_leaves_nothing(incus: ScriptedIncus, machine: Machine) -> None:
    async def after(method: str, path: str) -> None:
        if method == "POST":
            raise IncusError(500, "broken pipe")

    incus.after = after
    with pytest.raises(IncusError):
        await machine.moves.stage(OLD, NEW, None)
    assert set(incus.volumes) == {"disk-old"}
    with pytest.raises(NotFound):
        await machine.moves.stage(DiskId("none"), NEW, None)


async def test_copies_of_an_earlier_service_are_removed_and_own_ones_stay(
    incus: ScriptedIncus, machine: Machine
) -> None:
    incus.has_volume("disk-left", "node2", moving="old", size="1000")
    await machine.moves.stage(OLD, NEW, None)
    await machine.remove_left_overs({"node2"})
    assert set(incus.volumes) == {"disk-old", "disk-new"}


async def members_of(*found: Any) -> Cluster:
    class Client:
        async def get(self, path: str, **_: str) -> Any:
            return [
                {"server_name": name, "url": f"https://10.0.0.{name[-1]}:8443", "status": status, "config": config}
                for name, status, config in found
            ]

    client: Any = Client()
    cluster = Cluster(client, IncusOptions())
    cluster.clustered = True
    return cluster


async def test_new_disks_avoid_members_that_are_evacuated() -> None:
    leaving = {"user.builderd.evacuate": "1"}
    cluster = await members_of(("node1", "Evacuated", {}), ("node2", "Online", leaving), ("node3", "Online", None))
    assert [(one.online, one.leaving) for one in await cluster.members()] == [(True, True), (True, True), (True, False)]
    assert await cluster.place(["node3", "node3"]) == "node3"
    cluster = await members_of(("node1", "Online", leaving), ("node2", "Offline", {}))
    with pytest.raises(NoCapacity, match="cluster status"):
        await cluster.place([])


async def test_capacity_counts_members_that_are_away_and_not_those_that_are_evacuated(machine: Machine) -> None:
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
