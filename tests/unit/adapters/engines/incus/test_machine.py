"""A member that returns while the service works: what an earlier service left there goes, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import cluster, network
from builderd.adapters.engines.incus.builds import Program
from builderd.adapters.engines.incus.client import IncusError
from builderd.adapters.engines.incus.cluster import Member
from builderd.adapters.engines.incus.engine import Machine
from builderd.adapters.engines.incus.instance import Instance
from builderd.domain.errors import EngineUnavailable
from builderd.domain.layers import BuildStep, Cache, LayerPlan
from builderd.ports.engine import ToolExit

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


async def test_only_what_an_earlier_service_left_on_the_member_is_removed(ip: list[str]) -> None:
    incus = ScriptedIncus()
    machine = machine_on(incus)
    incus.has_instance("build-left")
    incus.has_instance("build-elsewhere", "node1")
    incus.has_instance("helper-node2-old")
    incus.has_instance("s-1", **ROUTED)
    incus.has_volume("new-left")
    incus.has_volume("new-elsewhere", "node1")
    incus.has_volume("disk-1")
    await returned(machine)
    assert set(incus.instances) == {"build-elsewhere", "s-1"}
    assert set(incus.volumes) == {"new-elsewhere", "disk-1"}


def has_member_return(incus: ScriptedIncus, machine: Machine) -> list[list[str]]:
    """Have node2 return each time that something was made. Returns the instances that are there after each return."""
    left: list[list[str]] = []

    async def after(method: str, path: str) -> None:
        if method == "POST":
            await returned(machine)
            left.append(list(incus.instances))

    incus.after = after
    return left


async def test_instance_of_a_running_build_stays(ip: list[str]) -> None:
    incus = ScriptedIncus()
    machine = machine_on(incus)
    left = has_member_return(incus, machine)
    program, instance = Program(("true",), {}, "/", 10), Instance("", "base", "default", 1, 1, 1, 1)
    with pytest.raises(IncusError, match="Nothing is started"):
        await machine.runner.run(instance, program, "node2", lambda _: None, network=False)
    assert [len(names) for names in left] == [1]
    assert not incus.instances
    assert not machine.runner.own


async def test_build_that_incus_did_not_delete_is_deleted_once_it_answers_again(
    ip: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WATCH_SECONDS", 0.001)
    incus = ScriptedIncus()
    machine = machine_on(incus)
    await machine.members.look()
    works, refused = incus.before, asyncio.Event()

    async def refuse(method: str, path: str) -> None:
        if method != "POST" and path.startswith("/instances/build-"):
            refused.set()
            raise EngineUnavailable("no quorum")

    incus.before = refuse
    program, instance = Program(("true",), {}, "/", 10), Instance("", "base", "default", 1, 1, 1, 1)
    machine.members.watch(machine.on_change)
    try:
        with pytest.raises(EngineUnavailable, match="no quorum"):
            await machine.runner.run(instance, program, "node2", lambda _: None, network=False)
        assert len(incus.instances) == 1
        refused.clear()
        async with asyncio.timeout(10):
            # The first attempt of a later clean-up fails, too.
            await refused.wait()
            incus.before = works
            while incus.instances:
                await asyncio.sleep(0.001)
    finally:
        await machine.members.close()


class LookingRunner:
    """Notes which volumes are there when a step runs."""

    def __init__(self, incus: ScriptedIncus) -> None:
        self.incus = incus
        self.seen: list[str] = []

    async def run(self, *_: object, **__: object) -> ToolExit:
        self.seen = [name for name in self.incus.volumes if name.startswith("new-")]
        return ToolExit(1)


@pytest.mark.parametrize("compiles", [False, True], ids=["build", "compile"])
async def test_volumes_of_a_layer_that_is_made_stay(ip: list[str], compiles: bool) -> None:
    incus = ScriptedIncus()
    machine = machine_on(incus)
    incus.has_volume("new-left")
    has_member_return(incus, machine)
    runner = LookingRunner(incus)
    machine.layers._runner = runner  # type: ignore[assignment]
    step = BuildStep("install", ("true",), network=False, cache=Cache.SCRATCH)
    if compiles:
        incus.has_volume(f"layer-{KEY[:40]}", layer=KEY)
        await machine.layers.compile_layer(KEY, step)
    else:
        await machine.layers.build_layer(LayerPlan(KEY, {}, (step,), runs_foreign_code=False), lambda _: None)
    # That of the layer, and a cache of its own: nothing of the one that all share.
    assert len(runner.seen) == 2
    assert "cache" not in incus.volumes
    assert "new-left" not in runner.seen
    assert not [name for name in incus.volumes if name.startswith("new-")]
    assert not machine.layers.own


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
