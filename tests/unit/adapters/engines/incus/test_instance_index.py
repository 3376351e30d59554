"""Addresses and kept instances are known without Incus's list, which grows with all apps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import routes
from builderd.adapters.engines.incus.errors import IncusConflict, IncusError, error_of, unreachable
from builderd.adapters.engines.incus.instance import Instance
from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.resources import GB

BUILDER = BuilderId("b")
INVALID = 'Failed initializing instance: Invalid devices: Device validation failed for "eth0"'


class CountingIncus(ScriptedIncus):
    """Counts the lists of all instances; ``asked`` are the addresses that were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.lists = 0
        self.asked: list[str] = []

    async def get(self, path: str, **query: str) -> Any:
        self.lists += path == "/instances"
        return await super().get(path, **query)

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        if (method, path) == ("POST", "/instances"):
            self.asked.append(body["config"]["user.builderd.ip"])
        return await super().call(method, path, body, **query)


@pytest.fixture(autouse=True)
def ip(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: str) -> str:
        return ""

    monkeypatch.setattr(routes, "_ip", nothing)


@pytest.fixture
def incus() -> CountingIncus:
    return CountingIncus()


def instance(name: str) -> Instance:
    return Instance(name, "base", "default", 1, GB, 100, GB)


def numbers(monkeypatch: pytest.MonkeyPatch, *wanted: int) -> None:
    """Have addresses tried in this order."""
    left = iter(wanted)
    monkeypatch.setattr("random.randrange", lambda *_: next(left))


async def test_list_is_read_once_for_many_starts_and_deletions(incus: CountingIncus) -> None:
    instances = machine_on(incus).instances
    for count in range(5):
        await instances.create(instance(f"s-{count}"), "node2", egress=True)
        assert await instances.kept(BUILDER) == []
        await instances.delete(f"s-{count}")
    assert incus.lists == 1


async def test_address_is_free_again_only_once_its_instance_has_lost_it(
    incus: CountingIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    incus.has_instance("s-0", builder=BUILDER)
    instances = machine_on(incus).instances
    numbers(monkeypatch, 20, 20, 21, 20, 21, 22, 20)
    first = await instances.create(instance("s-1"), "node2", egress=True)
    assert await instances.create(instance("s-2"), "node2", egress=True) != first
    # Ended, and kept for its log.
    await instances.strip(incus.instances["s-1"], {"removed": "1", "ip": ""})
    assert await instances.create(instance("s-3"), "node2", egress=True) == first
    await instances.create(instance("s-4"), "node2", egress=True)
    await instances.delete("s-3")
    assert await instances.create(instance("s-5"), "node2", egress=True) == first


async def test_addresses_of_instances_that_are_made_at_once_differ(
    incus: CountingIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    instances = machine_on(incus).instances
    numbers(monkeypatch, 20, 20, 21)
    made = await asyncio.gather(*(instances.create(instance(f"s-{n}"), "node2", egress=True) for n in range(2)))
    assert len(set(made)) == 2


async def test_address_of_a_member_that_is_away_stays_taken(
    incus: CountingIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    instances = machine_on(incus).instances
    numbers(monkeypatch, 20, 20, 21)
    first = await instances.create(instance("s-1"), "node2", egress=True)
    # Incus's list has its name alone.
    incus.has_instance("s-1", status="Error")
    await instances.all()
    assert await instances.create(instance("s-2"), "node3", egress=True) != first


async def test_address_of_a_member_that_was_away_from_the_first_is_taken(
    incus: CountingIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that takes over while a member is away gives out none of its addresses."""
    incus.has_instance("s-1", "node3", status="Error")
    incus.addresses["s-1"] = "10.99.0.20"
    instances = machine_on(incus).instances
    numbers(monkeypatch, 20, 21)
    assert await instances.create(instance("s-2"), "node2", egress=True) == "10.99.0.21"
    await instances.all()
    assert instances.index.addresses() == {"10.99.0.20", "10.99.0.21"}
    assert instances.index.member("s-1") == "node3"
    # Removed with its member.
    del incus.instances["s-1"]
    await instances.all()
    assert instances.index.addresses() == {"10.99.0.21"}


async def test_sandbox_whose_address_a_later_one_has_is_ended_and_gets_no_visitors(
    incus: CountingIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[str] = []

    async def ip(*words: str) -> str:
        changed.append(" ".join(words))
        return ""

    monkeypatch.setattr(routes, "_ip", ip)
    incus.has_instance("s-1", "node3", builder="b", ip="10.99.0.20", started="1.0")
    incus.has_instance("s-2", "node2", builder="c", ip="10.99.0.20", started="2.0")
    machine = machine_on(incus)
    await machine.members.look()
    await machine.sandboxes.adoption.adopt()
    await machine.sandboxes.adoption.adopt_on({"node3"})
    assert [one for one in changed if "replace" in one] == ["route replace 10.99.0.20/32 via 10.0.0.2 proto 152"]
    assert (incus.instances["s-1"]["status"], incus.instances["s-2"]["status"]) == ("Stopped", "Running")
    # Its removal leaves the route of the other.
    machine.sandboxes._ordered.add("s-1")
    await machine.sandboxes.remove(SandboxId("1"))
    assert not [one for one in changed if "del" in one]


async def test_list_that_was_asked_for_before_a_deletion_does_not_bring_its_address_back(incus: CountingIncus) -> None:
    instances = machine_on(incus).instances
    await instances.create(instance("s-1"), "node2", egress=True)
    listed, end = asyncio.Event(), asyncio.Event()
    get = incus.get

    async def slow(path: str, **query: str) -> Any:
        answer = await get(path, **query)
        listed.set()
        await end.wait()
        return answer

    incus.get = slow  # type: ignore[method-assign]
    reading = asyncio.create_task(instances.all())
    await listed.wait()
    await instances.delete("s-1")
    await instances.create(instance("s-2"), "node2", egress=True)
    end.set()
    await reading
    assert instances.index.member("s-1") is None
    assert instances.index.member("s-2") == "node2"
    assert len(instances.index.addresses()) == 1


async def test_list_shows_that_an_operator_deleted_an_instance(incus: CountingIncus) -> None:
    instances = machine_on(incus).instances
    await instances.create(instance("s-1"), "node2", egress=True)
    del incus.instances["s-1"]
    await instances.all()
    assert not instances.index.addresses()


@pytest.mark.parametrize("error", [unreachable("the socket", "timeout"), IncusError(400, "Failed to start")], ids=str)
async def test_address_stays_taken_until_what_an_unanswered_start_made_is_deleted(
    incus: CountingIncus, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    instances = machine_on(incus).instances
    numbers(monkeypatch, 20, 20, 21, 20)

    async def lose(method: str, path: str) -> None:
        if (method, path) == ("POST", "/instances"):
            incus.after = nothing
            raise error

    async def nothing(*_: str) -> None: ...

    incus.after = lose
    with pytest.raises(type(error)):
        await instances.create(instance("s-1"), "node2", egress=True)
    assert await instances.create(instance("s-2"), "node2", egress=True) == "10.99.0.21"
    await instances.delete("s-1")
    assert await instances.create(instance("s-3"), "node2", egress=True) == "10.99.0.20"


async def test_address_of_a_failed_start_is_free_and_that_of_an_earlier_one_stays(
    incus: CountingIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    instances = machine_on(incus).instances
    numbers(monkeypatch, 20, 21, 22, 20, 21)
    await instances.create(instance("s-1"), "node2", egress=True)
    errors = [
        # Incus compares the MAC address first, which follows from the IP address.
        error_of(409, f'{INVALID}: MAC address "02:bd:0a:63:00:15" already defined on another NIC', "POST /instances"),
        error_of(409, 'Instance "s-1" already exists', "POST /instances"),
    ]

    async def fail(*_: str) -> None:
        if errors:
            raise errors.pop(0)

    incus.before = fail
    with pytest.raises(IncusConflict):
        await instances.create(instance("s-1"), "node2", egress=True)
    first, second, third = incus.asked
    assert instances.index.addresses() == {first}
    assert await instances.create(instance("s-2"), "node2", egress=True) == second != third


async def test_kept_instances_are_those_of_the_builder_on_members_that_answer(incus: CountingIncus) -> None:
    machine = machine_on(incus)
    for name, builder, made in (("s-2", "b", "2"), ("s-1", "b", "1"), ("s-3", "c", "3"), ("s-4", "b", "4")):
        incus.has_instance(name, "node3" if name == "s-4" else "node2", "Stopped", builder=builder, removed="1")
        incus.instances[name]["created_at"] = made
    incus.has_instance("s-5", builder="b")
    machine.members._away = {"node3": 0.0}
    assert await machine.instances.kept(BUILDER) == ["s-1", "s-2"]
    await machine.sandboxes.delete_logs(BUILDER)
    assert set(incus.instances) == {"s-3", "s-4", "s-5"}
    assert await machine.instances.kept(BUILDER) == []


async def test_instance_of_a_member_that_answers_is_found_without_the_list_while_another_is_away(
    incus: CountingIncus,
) -> None:
    incus.has_instance("s-1", "node3", status="Error")
    machine = machine_on(incus)
    await machine.instances.create(instance("s-2"), "node2", egress=True)
    machine.members._away = {"node3": 0.0}
    before = incus.lists
    found = await machine.instances.find("s-2")
    assert found
    assert incus.lists == before
    assert (await machine.instances.find("s-1") or {})["status"] == "Error"
    assert await machine.instances.find("s-9") is None
    assert incus.lists == before + 2


async def test_reserved_address_is_given_to_nobody(incus: CountingIncus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A route may still lead to it, or visitors wait for it."""
    reserved: set[str] = set()
    instances = machine_on(incus, reserved=reserved.__contains__).instances
    numbers(monkeypatch, 20, 20, 21, 20)
    first = await instances.create(instance("s-1"), "node2", egress=True)
    await instances.delete("s-1")
    reserved.add(first)
    assert await instances.create(instance("s-2"), "node2", egress=True) == "10.99.0.21"
    reserved.clear()
    assert await instances.create(instance("s-3"), "node2", egress=True) == first
