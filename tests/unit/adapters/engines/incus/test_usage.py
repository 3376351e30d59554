"""Usage of many sandboxes is read by the metrics of their members, and says which cannot be read."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.unit.adapters.engines.incus.metrics_text import instance, metrics
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import disk_usage, usages
from builderd.adapters.engines.incus import usage as module
from builderd.adapters.engines.incus.port_looks import parse_look
from builderd.adapters.engines.incus.usage import FEW
from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import SandboxId
from builderd.domain.members import MemberAway
from builderd.domain.sandboxes import SandboxUsage

MANY = [SandboxId(str(number)) for number in range(FEW + 4)]
USED = SandboxUsage(1.50005, 10_000_000, 3, 7, 8, 4)


class MeteredIncus(ScriptedIncus):
    """Writes the metrics of members; ``paths`` are those that were read, with the member that was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = []
        self.used = 3
        #: By member, in place of its metrics; of volumes.
        self.failing: dict[str, Exception] = {}
        for number, sandbox in enumerate(MANY):
            disk, member = f"disk-{sandbox}", f"node{number % 2 + 2}"
            self.has_volume(disk, member)
            own = {"builder": "b", "disk": sandbox, "started": "1.0"}
            self.has_instance(f"s-{sandbox}", member, volumes=["layer-1", disk], **own)

    async def get(self, path: str, **query: str) -> Any:
        assert query.get("recursion") != "2", "Incus runs three programs for each instance then"
        self.paths.append(f"{path} {query.get('target', '')}".strip())
        if path.startswith("/instances/") and path.endswith("/state"):
            return {"cpu": {"usage": 1_500_000_000}}
        if path.endswith("/state"):
            if error := self.failing.get("volumes"):
                raise error
            return {"usage": {"used": self.used}}
        return await super().get(path, **query)

    async def text(self, path: str, limit: int, **query: str) -> bytes:
        member = query["target"]
        self.paths.append(f"{path} {member}")
        if error := self.failing.get(member):
            raise error
        running = [
            name for name, one in self.instances.items() if one["location"] == member and one["status"] == "Running"
        ]
        return metrics(instance(name) for name in running)

    def asked(self, part: str) -> list[str]:
        return [path for path in self.paths if part in path]


@pytest.fixture
def incus(monkeypatch: pytest.MonkeyPatch) -> MeteredIncus:
    monkeypatch.setattr(usages, "REST", 0.0)
    return MeteredIncus()


async def test_many_are_read_by_the_metrics_of_their_members(incus: MeteredIncus) -> None:
    machine = machine_on(incus)
    assert await machine.usage.usages(MANY) == dict.fromkeys(MANY, USED)
    assert sorted(incus.asked("/metrics")) == ["/metrics node2", "/metrics node3"]
    incus.paths.clear()
    assert await machine.usage.usages(MANY) == dict.fromkeys(MANY, USED)
    assert sorted(incus.paths) == ["/metrics node2", "/metrics node3"]


async def test_used_bytes_of_a_disk_are_read_now_and_then(incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_on(incus)
    await machine.usage.usages(MANY)
    assert len(incus.asked("/state")) == len(MANY)
    incus.used = 5
    found = await machine.usage.usages(MANY)
    assert len(incus.asked("/state")) == len(MANY)
    assert {one.disk_bytes for one in found.values() if isinstance(one, SandboxUsage)} == {3}
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + disk_usage.MAX_AGE_SECONDS)
    found = await machine.usage.usages(MANY)
    assert {one.disk_bytes for one in found.values() if isinstance(one, SandboxUsage)} == {5}


async def test_disk_that_cannot_be_read_again_keeps_its_last_bytes(
    incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machine_on(incus)
    incus.failing["volumes"] = EngineUnavailable("busy")
    assert {str(one) for one in (await machine.usage.usages(MANY)).values()} == {"busy"}
    incus.failing.clear()
    assert await machine.usage.usages(MANY) == dict.fromkeys(MANY, USED)
    incus.failing["volumes"] = EngineUnavailable("busy")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + disk_usage.MAX_AGE_SECONDS)
    assert await machine.usage.usages(MANY) == dict.fromkeys(MANY, USED)


async def test_readings_that_are_young_enough_are_not_taken_again(
    incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machine_on(incus)
    await machine.usage.usages(MANY)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 10)
    found = await machine.usage.usages(MANY[1:], max_age=11)
    assert len(incus.asked("/metrics")) == 2
    assert all(isinstance(one, SandboxUsage) and 10 <= one.age_seconds < 11 for one in found.values())
    found = await machine.usage.usages(MANY[1:], max_age=9)
    assert len(incus.asked("/metrics")) == 4
    assert all(isinstance(one, SandboxUsage) and one.age_seconds < 1 for one in found.values())


async def test_member_is_left_alone_for_a_multiple_of_the_time_that_it_took(
    incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost of many apps for their member has a bound; no reading is older than a minute."""
    now, took, text = time.monotonic(), 0.6, incus.text
    for one in incus.instances.values():
        one["location"] = "node2"

    async def slow(path: str, limit: int, **query: str) -> bytes:
        nonlocal now
        now += took
        return await text(path, limit, **query)

    monkeypatch.setattr(usages, "REST", 20.0)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(incus, "text", slow)
    machine, asked = machine_on(incus), []
    # Asked anew after 12 s; then it takes long, and is asked anew after a minute from the begin of its answer.
    for seconds in (0.0, 11.0, 0.5, 29.0, 0.9, 0.2):
        now += seconds
        if len(incus.asked("/metrics")) == 1:
            took = 30.0
        await machine.usage.usages(MANY)
        asked.append(len(incus.asked("/metrics")))
    assert asked == [1, 1, 2, 2, 2, 3]


async def test_ended_apps_are_left_out_and_lost_members_are_named(incus: MeteredIncus) -> None:
    machine = machine_on(incus)
    away, noted, ended, removed, gone, *_ = (f"s-{sandbox}" for sandbox in MANY)
    incus.has_instance(away, "node9", status="Error")
    machine.members._away = {"node9": 0.0}
    incus.has_instance(noted, status="Error")
    machine.lost_sandboxes._names.add(noted)
    incus.instances[ended]["status"] = incus.instances[removed]["status"] = "Stopped"
    incus.instances[removed]["config"]["user.builderd.removed"] = "1"
    del incus.instances[gone]
    found = await machine.usage.usages(MANY)
    assert found.keys() == {MANY[0], *MANY[5:]}
    assert isinstance(found[MANY[0]], MemberAway)


async def test_list_that_fails_is_the_error_of_each(incus: MeteredIncus) -> None:
    async def fail(path: str, **query: str) -> Any:
        raise EngineUnavailable("no quorum")

    machine = machine_on(incus)
    incus.get = fail  # type: ignore[method-assign]
    found = await machine.usage.usages(MANY)
    assert [str(error) for error in found.values()] == ["no quorum"] * len(MANY)


async def test_member_that_fails_is_the_error_of_its_sandboxes_alone(incus: MeteredIncus) -> None:
    incus.failing["node3"] = EngineUnavailable("no answer")
    found = await machine_on(incus).usage.usages(MANY)
    assert [found[one] for one in MANY[::2]] == [USED] * (len(MANY) // 2)
    assert {str(found[one]) for one in MANY[1::2]} == {"no answer"}


async def test_instance_that_cannot_be_read_is_the_error_of_its_sandbox_alone(
    incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def text(path: str, limit: int, **query: str) -> bytes:
        return metrics(instance(f"s-{one}", without="procs" if one == MANY[0] else "none") for one in MANY)

    monkeypatch.setattr(incus, "text", text)
    found = await machine_on(incus).usage.usages(MANY)
    assert type(found[MANY[0]]) is EngineUnavailable
    assert [found[one] for one in MANY[1:]] == [USED] * (len(MANY) - 1)


async def test_app_that_is_started_has_its_disk_known(incus: MeteredIncus) -> None:
    machine = machine_on(incus)
    await machine.instances.index.load()
    machine.instances.index.note(
        {"name": "s-new", "location": "node2", "config": {"user.builderd.ip": "10.0.0.9", "user.builderd.disk": "d"}}
    )
    incus.has_instance("s-new", "node2")
    incus.has_volume("disk-d", "node2")
    found = await machine.usage.usages([*MANY, SandboxId("new")])
    assert found[SandboxId("new")] == USED
    assert incus.asked("disk-d/state") == ["/storage-pools/default/volumes/custom/disk-d/state node2"]


async def test_looks_at_ports_are_no_work_of_the_app(incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Incus counts what is executed in an instance as its own: an app that waits would be given five times its time."""
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
