"""Members over time: who is away, who has to be prepared; what they show and what is set while one is evacuated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import datetime, timedelta
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from builderd.core.errors import EngineUnavailable, InvalidState
from builderd.engine.incus import cluster as module
from builderd.engine.incus.client import IncusConflict, IncusError, IncusNotFound, IncusOptions, unreachable
from builderd.engine.incus.cluster import EVACUATE, Cluster, Member, Members
from builderd.engine.incus.network import network_config
from builderd.engine.incus.provider import Administration
from builderd.engine.port import EngineOptions

OPTIONS = IncusOptions()
DENY = [IPv4Network("203.0.113.0/24")]


class Lists:
    """An Incus of two members that keeps one access list, in its own order and with empty fields."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] | None = None
        self.evacuated: Sequence[str] = ()
        self.puts = 0

    async def get(self, path: str, **query: str) -> Any:
        if path == "/cluster/members":
            return [
                {
                    "server_name": name,
                    "url": f"https://10.0.0.{name[-1]}:8443",
                    "status": "Evacuated" if name in self.evacuated else "Online",
                    "config": {EVACUATE: "1"} if name in self.evacuated else {},
                }
                for name in ("node1", "node2")
            ]
        if path.startswith("/networks"):
            return {"config": network_config(OPTIONS)}
        return deepcopy(self.stored)

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        if method == "POST":
            if self.stored is not None:
                raise IncusConflict(409, "already exists")
            self.stored = {"name": body["name"], "egress": [], "ingress": []}
            return
        self.puts += 1
        if self.evacuated:
            raise IncusError(500, "failed to notify peer: flush chain inet incus acl.builderd")
        rules = {kind: [{**rule, "icmp_type": ""} for rule in reversed(body[kind])] for kind in ("egress", "ingress")}
        self.stored = {"name": "builderd", **rules}


def cluster_on(lists: Lists, own: str = "node1") -> Cluster:
    cluster = Cluster(lists, OPTIONS)  # type: ignore[arg-type]
    cluster.clustered, cluster.own = True, own
    return cluster


async def ensure(cluster: Cluster, deny: Sequence[IPv4Network] = ()) -> None:
    await cluster.ensure_network(EngineOptions(Path("/none"), inside_port=8082, deny=tuple(deny)), ["9.9.9.9"])


async def test_list_that_is_as_wanted_is_not_changed() -> None:
    lists = Lists()
    await ensure(cluster_on(lists))
    await ensure(cluster_on(lists))
    assert lists.puts == 1
    await ensure(cluster_on(lists), DENY)
    assert lists.puts == 2


async def test_rule_of_the_operator_that_cannot_be_set_is_an_error_in_words() -> None:
    lists = Lists()
    await ensure(cluster_on(lists))
    lists.evacuated = ["node2"]
    with pytest.raises(EngineUnavailable, match=r"node2.*cluster restore"):
        await ensure(cluster_on(lists), DENY)
    lists.evacuated = []
    await ensure(cluster_on(lists), DENY)


class ScriptedCluster:
    """Answers with the members that a test sets, or fails with its ``errors`` one after the other."""

    clustered, own = True, "node1"

    def __init__(self, **online: bool) -> None:
        self.online = online
        self.errors: list[Exception] = []
        self.leaving: set[str] = set()
        self.looks = 0

    async def members(self) -> Sequence[Member]:
        self.looks += 1
        if self.errors:
            raise self.errors.pop(0)
        return [
            Member(name, f"10.0.0.{name[-1]}", online, name in self.leaving) for name, online in self.online.items()
        ]


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


@asynccontextmanager
async def watched(cluster: ScriptedCluster, *errors: Exception) -> AsyncIterator[tuple[Members, asyncio.Queue[None]]]:
    """Yield members that are watched for ten seconds at most, and the calls of ``on_change``, which raises these."""
    members, calls, failing = Members(cluster), asyncio.Queue[None](), list(errors)  # type: ignore[arg-type]
    await members.look()

    async def on_change() -> None:
        calls.put_nowait(None)
        if failing:
            raise failing.pop(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WATCH_SECONDS", 0.001)
        members.watch(on_change)
        try:
            async with asyncio.timeout(10):
                yield members, calls
        finally:
            await members.close()


async def looks(cluster: ScriptedCluster, count: int) -> None:
    """Wait until so many more looks have begun, the last but one of which has ended."""
    end = cluster.looks + count
    while cluster.looks < end:
        await asyncio.sleep(0.001)


async def test_each_change_is_prepared_until_that_succeeds() -> None:
    cluster = ScriptedCluster(node1=True, node2=False)
    async with watched(cluster, EngineUnavailable("not now")) as (members, calls):
        await looks(cluster, 2)
        assert calls.empty()
        cluster.online |= {"node2": True, "node3": True}
        await calls.get()
        await calls.get()
        cluster.online["node3"] = False
        await calls.get()
        assert members.away_names() == {"node3"}
        del cluster.online["node3"]
        await calls.get()
        await looks(cluster, 2)
        assert calls.empty()


async def test_single_look_that_fails_refuses_nothing_and_a_second_one_does() -> None:
    cluster = ScriptedCluster(node1=True)
    reasons: list[str] = []
    async with watched(cluster) as (members, _):
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


SPACE = {"total": 10, "used": 5}
STATE = {
    "sysinfo": {"free_ram": 1, "buffered_ram": 1, "total_ram": 4},
    "storage_pools": {"default": {"space": SPACE}},
}


class Client:
    """Incus with two members; node2 was just killed, and Incus has not seen it."""

    async def get(self, path: str, **query: str) -> Any:
        if path == "/cluster/members/node2/state" or query.get("target") == "node2":
            raise unreachable("node2", OSError("connection refused"))
        if path == "/cluster/members":
            return [
                {"server_name": name, "url": f"https://10.0.0.{name[-1]}:8443", "status": "Online"}
                for name in ("node1", "node2")
            ]
        if path == "/cluster/members/node1":
            empty: dict[str, Any] = {"roles": [], "failure_domain": "", "description": "", "groups": []}
            return {"status": "Online", **empty}
        if path.endswith("/state"):
            return STATE
        if path.endswith("/volumes/custom"):
            return [{"name": "disk-1", "location": "node1", "config": {}}]
        raise IncusNotFound(404, path)

    async def call(self, *_: object, **__: object) -> None:
        await asyncio.sleep(0)


@pytest.fixture
def administration(monkeypatch: pytest.MonkeyPatch) -> Administration:
    monkeypatch.setattr("builderd.engine.incus.provider.IncusClient", lambda _: Client())
    return Administration(IncusOptions())


async def test_member_that_was_just_killed_is_shown_beside_the_others(administration: Administration) -> None:
    one, two = await administration.members()
    assert (one.status, one.pool_total is None) == ("Online", False)
    assert (two.status, two.pool_total) == ("Online, does not answer", None)


async def test_evacuation_that_is_not_waited_for_names_the_disks_that_are_left(administration: Administration) -> None:
    shown: list[Sequence[str]] = []
    with pytest.raises(InvalidState, match=r"1 disks are left on node1 \(disk-1\)"):
        await administration.evacuate("node1", shown.append, 0)
    assert shown == [["disk-1"]]
