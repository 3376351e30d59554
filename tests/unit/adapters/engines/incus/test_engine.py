"""The engine while members return, and while its cluster does not answer for want of a quorum."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import cluster as module
from builderd.adapters.engines.incus import network
from builderd.adapters.engines.incus.client import IncusClient, IncusOptions, error_of
from builderd.adapters.engines.incus.cluster import Member
from builderd.adapters.engines.incus.engine import IncusEngine, Machine
from builderd.domain.errors import EngineUnavailable
from builderd.ports.engine import Readiness

NODE2 = Member("node2", "10.0.0.2", online=True)
KEY = "a" * 64
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


async def test_apps_get_a_whole_url_also_where_the_services_member_has_no_ipv4_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = machine_on(ScriptedIncus())
    url_on = machine.sandboxes._url_on
    assert await url_on("node2") == "http://10.0.0.1:1"
    machine.members._seen = {"node1": Member("node1", "", online=True)}
    assert await url_on("node2") == await url_on("node1")


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


async def test_engine_is_not_ready_from_a_failed_look_at_the_members_to_one_that_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: Any = None
    engine = IncusEngine(options, IncusOptions())
    machine = machine_on(ScriptedIncus())
    engine._machine, engine._readiness = machine, Readiness(True, "ready")
    cluster, members = machine.cluster, machine.members
    await members.look()
    answer = cluster.members
    looks = 0

    async def fail() -> Any:
        nonlocal looks
        looks += 1
        raise error_of(503, "no available cowsql leader server found", "GET /cluster/members")

    async def arrive() -> None:
        pass

    monkeypatch.setattr(module, "WATCH_SECONDS", 0.001)
    assert engine.readiness().ready
    monkeypatch.setattr(cluster, "members", fail)
    members.watch(arrive)
    try:
        async with asyncio.timeout(10):
            while engine.readiness().ready:
                await asyncio.sleep(0.001)
            assert "quorum" in engine.readiness().message
            assert engine.readiness().engine_unreachable
            assert "quorum" in machine.client.unavailable_reason()
            monkeypatch.setattr(cluster, "members", answer)
            while not engine.readiness().ready:
                await asyncio.sleep(0.001)
    finally:
        await members.close()
    assert looks
    assert machine.client.unavailable_reason() == ""


async def test_sandboxes_that_cannot_be_stopped_keep_no_other_from_its_end() -> None:
    options: Any = None
    engine, incus = IncusEngine(options, IncusOptions()), ScriptedIncus()
    incus.has_instance("build-left")
    engine._machine = machine = machine_on(incus)
    stopped, running, most = set[str](), 0, 0

    async def stop(sandbox: str, grace_seconds: float) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        if sandbox == "1":
            raise KeyError("size")
        stopped.add(sandbox)

    async def found() -> Any:
        return [SimpleNamespace(id=str(number), alive=number > 0) for number in range(40)]

    machine.sandboxes.stop, machine.sandboxes.list_sandboxes = stop, found  # type: ignore[method-assign, assignment]
    with pytest.raises(EngineUnavailable, match=r"^1 of 39 sandboxes .* builderd down again.*KeyError"):
        await engine.down()
    assert stopped == {str(number) for number in range(2, 40)}
    assert most == 16
    assert "build-left" not in incus.instances
