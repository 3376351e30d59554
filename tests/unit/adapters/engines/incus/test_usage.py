"""Usage of many sandboxes is read by one list, which names those that are not to be read."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import usage as module
from builderd.adapters.engines.incus.helper import device_of
from builderd.adapters.engines.incus.usage import FEW, parse_look
from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import SandboxId
from builderd.domain.members import MemberAway
from builderd.domain.sandboxes import SandboxUsage

MANY = [SandboxId(str(number)) for number in range(FEW + 4)]


class StatefulIncus(ScriptedIncus):
    """Lists instances with ``state``; ``paths`` are those that were read."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = []
        for sandbox in MANY:
            disk = f"disk-{sandbox}"
            self.has_instance(f"s-{sandbox}", volumes=["layer-1", disk], builder="b", disk=sandbox, started="1.0")
            self.instances[f"s-{sandbox}"]["state"] = state(disk)

    async def get(self, path: str, **query: str) -> Any:
        self.paths.append(path)
        if path == "/instances":
            assert query["recursion"] == "2"
        if path.endswith("/state"):
            return self.instances[path.split("/")[2]]["state"]
        return await super().get(path, **query)


def state(disk: str) -> dict[str, Any]:
    return {
        "cpu": {"usage": 1_500_000_000},
        "memory": {"usage": 10_000_000},
        "processes": 4,
        "network": {"eth0": {"counters": {"bytes_received": 7, "bytes_sent": 8}}, "lo": {}},
        "disk": {"root": {"usage": 1}, device_of("layer-1"): {"usage": 2}, device_of(disk): {"usage": 3}},
    }


async def test_many_are_read_by_one_list() -> None:
    incus = StatefulIncus()
    found = await machine_on(incus).usage.usages(MANY)
    assert incus.paths == ["/instances"]
    assert found == dict.fromkeys(MANY, SandboxUsage(1.5, 10_000_000, 3, 7, 8, 4))


async def test_list_leaves_out_what_ended_and_names_lost_members() -> None:
    incus = StatefulIncus()
    machine = machine_on(incus)
    away, noted, ended, removed, gone, starting, *_ = (f"s-{sandbox}" for sandbox in MANY)
    incus.has_instance(away, "node3", status="Error")
    machine.members._away = {"node3": 0.0}
    incus.has_instance(noted, status="Error")
    machine.lost_sandboxes._names.add(noted)
    incus.instances[ended]["config"]["user.builderd.end"] = "{}"
    incus.instances[removed]["config"]["user.builderd.removed"] = "1"
    del incus.instances[gone]
    incus.instances[starting]["state"] = None
    found = await machine.usage.usages(MANY)
    assert found.keys() == {MANY[0], *MANY[6:]}
    assert isinstance(found[MANY[0]], MemberAway)


async def test_list_that_fails_is_the_error_of_each() -> None:
    incus = StatefulIncus()

    async def fail(path: str, **query: str) -> Any:
        raise EngineUnavailable("no quorum")

    machine = machine_on(incus)
    incus.get = fail  # type: ignore[method-assign]
    found = await machine.usage.usages(MANY)
    assert [str(error) for error in found.values()] == ["no quorum"] * len(MANY)


async def test_app_that_ends_while_it_is_listed_counts_as_none_of_a_lost_member() -> None:
    incus = StatefulIncus()
    incus.has_instance(f"s-{MANY[0]}", status="Error", builder="b", disk=MANY[0], started="1.0")
    found = await machine_on(incus).usage.usages(MANY)
    assert type(found[MANY[0]]) is EngineUnavailable
    assert all(isinstance(found[sandbox], SandboxUsage) for sandbox in MANY[1:])


async def test_entry_that_cannot_be_read_is_the_error_of_its_sandbox_alone() -> None:
    incus = StatefulIncus()
    del incus.instances[f"s-{MANY[0]}"]["state"]["cpu"]
    found = await machine_on(incus).usage.usages(MANY)
    assert isinstance(found[MANY[0]], KeyError)
    assert all(isinstance(found[sandbox], SandboxUsage) for sandbox in MANY[1:])


async def test_looks_at_ports_are_no_work_of_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Incus counts what is executed in an instance as its own: an app that waits would be given five times its time."""
    incus = StatefulIncus()
    usage = machine_on(incus).usage
    usage._sandboxes._ordered.update(incus.instances)

    async def look(*_: object) -> tuple[int, bytes]:
        return 0, b"  sl  local_address\n   0: 00000000:1F40 00000000:0000 0A\n400000000 7 1\n"

    monkeypatch.setattr(module, "run_to_end", look)
    for _ in range(3):
        assert (await usage.listening(MANY[0])).sockets == {("0.0.0.0", 8000)}
    effort, other = await usage.effort(MANY[0]), await usage.effort(MANY[1])
    assert effort is not None
    assert effort.cpu_seconds == pytest.approx(1.5 - 3 * 0.4)
    assert other is not None
    assert other.cpu_seconds == 1.5


@pytest.mark.parametrize("told", ["", "table\n", "table\n1 2\n", "table\n1 2 x\n"])
def test_look_without_its_own_time_takes_none(told: str) -> None:
    assert parse_look(told) == (told, 0.0)
