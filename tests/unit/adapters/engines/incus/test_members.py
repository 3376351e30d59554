"""Members of a cluster over time: who is away and since when, and who has to be prepared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import pytest

from builderd.adapters.engines.incus import cluster as module
from builderd.adapters.engines.incus.client import IncusOptions
from builderd.adapters.engines.incus.cluster import Member, Members, OnArrival
from builderd.domain.errors import EngineUnavailable


class ScriptedCluster:
    """Answers with the members that a test sets, or fails with its ``errors`` one after the other."""

    clustered, own = True, "node1"

    def __init__(self, **online: bool) -> None:
        self.online = online
        self.errors: list[Exception] = []
        self.looks = 0

    async def members(self) -> Sequence[Member]:
        self.looks += 1
        if self.errors:
            raise self.errors.pop(0)
        return [Member(name, f"10.0.0.{name[-1]}", online) for name, online in self.online.items()]


async def test_time_of_absence_counts_from_the_first_look_without_the_member() -> None:
    cluster = ScriptedCluster(node1=True, node2=True)
    members = Members(cluster)  # type: ignore[arg-type]

    async def away_since() -> datetime | None:
        await members.look()
        return members.reports(IncusOptions(), {})[1].away_since

    assert await away_since() is None
    cluster.online["node2"] = False
    first, second = await away_since(), await away_since()
    assert first
    assert second
    assert abs(second - first) < timedelta(seconds=1)
    cluster.online["node2"] = True
    assert await away_since() is None


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
        while "node3" not in members.away_names():
            await asyncio.sleep(0.001)
        cluster.online["node3"] = True
        assert await calls.get() == ["node3"]
    finally:
        await members.close()


async def test_work_without_a_disk_goes_elsewhere_while_the_own_member_starts_nothing() -> None:
    cluster = ScriptedCluster(node1=True, node2=False, node3=True)
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


class Arrivals:
    """Notes the names that ``on_arrival`` is called with."""

    def __init__(self) -> None:
        self.names: asyncio.Queue[list[str]] = asyncio.Queue()

    async def note(self, found: Sequence[Member]) -> None:
        self.names.put_nowait([member.name for member in found])


@asynccontextmanager
async def watched(cluster: ScriptedCluster, on_arrival: OnArrival) -> AsyncIterator[Members]:
    """Hold members that are watched, all prepared at first, for ten seconds at most."""
    members = Members(cluster)  # type: ignore[arg-type]
    await members.look()
    members.prepared()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WATCH_SECONDS", 0.001)
        members.watch(on_arrival)
        try:
            async with asyncio.timeout(10):
                yield members
        finally:
            await members.close()


async def looks(cluster: ScriptedCluster, count: int) -> None:
    """Wait until so many more looks have begun, the last but one of which has ended."""
    end = cluster.looks + count
    while cluster.looks < end:
        await asyncio.sleep(0.001)


async def test_all_members_are_prepared_again_once_the_cluster_answers_again() -> None:
    cluster, arrivals = ScriptedCluster(node1=True, node2=True), Arrivals()
    async with watched(cluster, arrivals.note) as members:
        await looks(cluster, 2)
        assert arrivals.names.empty()
        cluster.errors = [EngineUnavailable("no quorum")] * 2
        assert await arrivals.names.get() == ["node1", "node2"]
        assert not members.unavailable_reason
        await looks(cluster, 2)
        assert arrivals.names.empty()


async def test_single_look_that_fails_refuses_nothing_and_a_second_one_does() -> None:
    cluster = ScriptedCluster(node1=True)
    reasons: list[str] = []
    async with watched(cluster, Arrivals().note) as members:
        answer = cluster.members

        async def note() -> Sequence[Member]:
            reasons.append(members.unavailable_reason)
            return await answer()

        cluster.members = note  # type: ignore[method-assign]
        cluster.errors = [EngineUnavailable("database is locked")]
        await looks(cluster, 3)
        assert set(reasons) == {""}
        cluster.errors = [EngineUnavailable("no quorum")] * 2
        await looks(cluster, 5)
    assert reasons.count("no quorum") == 1


async def test_refusal_ends_although_a_look_failed_in_a_way_that_nobody_expected() -> None:
    cluster, arrivals = ScriptedCluster(node1=True), Arrivals()
    async with watched(cluster, arrivals.note) as members:
        cluster.errors = [EngineUnavailable("no quorum"), KeyError("status"), KeyError("status")]
        while "KeyError('status')" not in members.unavailable_reason:
            await asyncio.sleep(0)
        while members.unavailable_reason:
            await asyncio.sleep(0.001)


async def test_own_member_is_prepared_again_once_another_one_is_removed() -> None:
    cluster, arrivals = ScriptedCluster(node1=True, node2=True, node3=True), Arrivals()
    async with watched(cluster, arrivals.note):
        del cluster.online["node2"]
        assert await arrivals.names.get() == ["node1"]


async def test_server_without_a_cluster_is_prepared_again() -> None:
    cluster, arrivals = ScriptedCluster(), Arrivals()
    cluster.online, cluster.own = {"": True}, ""

    async def only() -> Sequence[Member]:
        cluster.looks += 1
        return [Member("", "", online=True)]

    cluster.clustered, cluster.members = False, only  # type: ignore[method-assign]
    async with watched(cluster, arrivals.note) as members:
        members.prepare_again()
        assert await arrivals.names.get() == [""]
