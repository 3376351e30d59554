"""Members of a cluster over time: who is away and since when, and who has to be prepared."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from builderd.adapters.engines.incus import members as module
from builderd.adapters.engines.incus.cluster import Member
from builderd.adapters.engines.incus.members import Members
from builderd.domain.errors import EngineUnavailable


class ScriptedCluster:
    """Answers with the members that a test sets."""

    clustered = True

    def __init__(self, **online: bool) -> None:
        self.online = online

    async def members(self) -> Sequence[Member]:
        return [Member(name, f"10.0.0.{name[-1]}", online) for name, online in self.online.items()]


async def test_time_of_absence_counts_from_the_first_look_without_the_member() -> None:
    cluster = ScriptedCluster(node1=True, node2=True)
    members = Members(cluster)  # type: ignore[arg-type]
    await members.look()
    assert members.away("node2") is None
    cluster.online["node2"] = False
    await members.look()
    first = members.away("node2")
    await members.look()
    assert (first or 0) <= (members.away("node2") or -1)
    cluster.online["node2"] = True
    await members.look()
    assert members.away("node2") is None


async def test_unknown_member_is_asked_for() -> None:
    cluster = ScriptedCluster(node1=True)
    members = Members(cluster)  # type: ignore[arg-type]
    await members.look()
    cluster.online["node2"] = True
    assert await members.address("node2") == "10.0.0.2"
    assert await members.address("node9") == ""


async def test_joined_and_returned_members_are_prepared_until_that_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.001)
    cluster = ScriptedCluster(node1=True, node2=False)
    members = Members(cluster)  # type: ignore[arg-type]
    await members.look()
    members.prepared()
    calls: asyncio.Queue[list[str]] = asyncio.Queue()
    fails = [True]

    async def on_arrival(arrived: Sequence[Member]) -> None:
        calls.put_nowait([member.name for member in arrived])
        if fails:
            fails.clear()
            raise EngineUnavailable("not now")

    members.watch(on_arrival)
    try:
        cluster.online |= {"node2": True, "node3": True}
        assert await calls.get() == ["node2", "node3"]
        assert await calls.get() == ["node2", "node3"]
        cluster.online["node3"] = False
        while members.away("node3") is None:
            await asyncio.sleep(0.001)
        cluster.online["node3"] = True
        assert await calls.get() == ["node3"]
    finally:
        await members.close()


async def test_work_without_a_disk_goes_elsewhere_while_the_own_member_starts_nothing() -> None:
    cluster = ScriptedCluster(node1=True, node2=False, node3=True)
    cluster.own = "node1"  # type: ignore[attr-defined]
    members = Members(cluster)  # type: ignore[arg-type]
    assert members.taking_work() == "node1"
    await members.look()
    assert members.taking_work() == "node1"
    members._seen = {**members._seen, "node1": Member("node1", "10.0.0.1", online=True, leaving=True)}
    assert members.taking_work() == "node3"
    members._seen = {"node1": members._seen["node1"], "node2": members._seen["node2"]}
    assert members.taking_work() == "node1"


async def test_restored_member_is_prepared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = ScriptedCluster(node1=True, node2=True)
    members = Members(cluster)  # type: ignore[arg-type]
    await members.look()
    members._seen = {**members._seen, "node2": Member("node2", "10.0.0.2", online=True, leaving=True)}
    members.prepared()
    arrived: asyncio.Queue[str] = asyncio.Queue()

    async def arrive(found: Sequence[Member]) -> None:
        for member in found:
            arrived.put_nowait(member.name)

    monkeypatch.setattr(module, "WATCH_SECONDS", 0.001)
    members.watch(arrive)
    try:
        async with asyncio.timeout(10):
            assert await arrived.get() == "node2"
    finally:
        await members.close()
    assert arrived.empty()
