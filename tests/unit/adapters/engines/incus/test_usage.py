"""Usage of many sandboxes is read by the metrics of their members, and says which cannot be read."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from builderd.adapters.engines.incus.port_looks import LOOK, MOST_SOCKETS, parse_look
from builderd.adapters.engines.incus.usages import FEW
from tests.unit.adapters.engines.incus.metrics_text import instance, metrics
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import disk_usage, port_looks, usages
from builderd.adapters.engines.incus import usage as module
from builderd.adapters.engines.incus.machine import Machine
from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import SandboxId
from builderd.domain.members import MemberAway
from builderd.domain.sandboxes import IPV6_ONLY, SandboxUsage

MANY = [SandboxId(str(number)) for number in range(FEW + 4)]
USED = SandboxUsage(1.50005, 10_000_000, 3, 7, 8, 4)


class MeteredIncus(ScriptedIncus):
    """Writes the metrics of members; ``paths`` are those that were read, with the member that was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = []
        self.used = 3
        #: By member, in place of its metrics; of states.
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
            if error := self.failing.get("states"):
                raise error
            devices = self.instances[path.split("/")[2]]["devices"]
            disk = next(name for name, one in devices.items() if one.get("source", "").startswith("disk-"))
            return {
                "cpu": {"usage": 1_500_000_000},
                "memory": {"usage": 1},
                "disk": {"root": {"usage": 1 << 20}, disk: {"usage": self.used}},
                "processes": 1,
            }
        return await super().get(path, **query)

    async def file(self, instance: str, path: str) -> bytes:
        """All have got their order."""
        return b""

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
    assert await machine.usages.read(MANY) == dict.fromkeys(MANY, USED)
    assert sorted(incus.asked("/metrics")) == ["/metrics node2", "/metrics node3"]
    incus.paths.clear()
    assert await machine.usages.read(MANY) == dict.fromkeys(MANY, USED)
    assert sorted(incus.paths) == ["/metrics node2", "/metrics node3"]


async def test_used_bytes_of_a_disk_are_read_now_and_then(incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = machine_on(incus)
    await machine.usages.read(MANY)
    assert len(incus.asked("/state")) == len(MANY)
    incus.used = 5
    assert await disks_of(machine) == {3}
    assert len(incus.asked("/state")) == len(MANY)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + disk_usage.MAX_AGE_SECONDS)
    assert await disks_of(machine) == {5}


async def test_disk_without_bytes_is_read_again_soon_and_keeps_its_last_ones(
    incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new volume of btrfs has none until its first commit."""
    machine = machine_on(incus)
    incus.used = 0
    assert await disks_of(machine) == {0}
    incus.used = 3
    assert await disks_of(machine) == {0}
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + disk_usage.EMPTY_SECONDS)
    assert await disks_of(machine) == {3}
    incus.used = 0
    monkeypatch.setattr(time, "monotonic", lambda: now + disk_usage.EMPTY_SECONDS + disk_usage.MAX_AGE_SECONDS)
    assert await disks_of(machine) == {3}


async def disks_of(machine: Machine) -> set[int]:
    found = await machine.usages.read(MANY)
    return {one.disk_bytes for one in found.values() if isinstance(one, SandboxUsage)}


async def test_disk_that_cannot_be_read_again_keeps_its_last_bytes(
    incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machine_on(incus)
    incus.failing["states"] = EngineUnavailable("busy")
    assert {str(one) for one in (await machine.usages.read(MANY)).values()} == {"busy"}
    incus.failing.clear()
    assert await machine.usages.read(MANY) == dict.fromkeys(MANY, USED)
    incus.failing["states"] = EngineUnavailable("busy")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + disk_usage.MAX_AGE_SECONDS)
    assert await machine.usages.read(MANY) == dict.fromkeys(MANY, USED)


async def test_readings_that_are_young_enough_are_not_taken_again(
    incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machine_on(incus)
    await machine.usages.read(MANY)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 10)
    found = await machine.usages.read(MANY[1:], max_age=11)
    assert len(incus.asked("/metrics")) == 2
    assert all(isinstance(one, SandboxUsage) and 10 <= one.age_seconds < 11 for one in found.values())
    found = await machine.usages.read(MANY[1:], max_age=9)
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
        await machine.usages.read(MANY)
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
    found = await machine.usages.read(MANY)
    assert found.keys() == {MANY[0], *MANY[5:]}
    assert isinstance(found[MANY[0]], MemberAway)


async def test_list_that_fails_is_the_error_of_each(incus: MeteredIncus) -> None:
    async def fail(path: str, **query: str) -> Any:
        raise EngineUnavailable("no quorum")

    machine = machine_on(incus)
    incus.get = fail  # type: ignore[method-assign]
    found = await machine.usages.read(MANY)
    assert [str(error) for error in found.values()] == ["no quorum"] * len(MANY)


async def test_member_that_fails_is_the_error_of_its_sandboxes_alone(incus: MeteredIncus) -> None:
    incus.failing["node3"] = EngineUnavailable("no answer")
    found = await machine_on(incus).usages.read(MANY)
    assert [found[one] for one in MANY[::2]] == [USED] * (len(MANY) // 2)
    assert {str(found[one]) for one in MANY[1::2]} == {"no answer"}


async def test_instance_that_cannot_be_read_is_the_error_of_its_sandbox_alone(
    incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def text(path: str, limit: int, **query: str) -> bytes:
        return metrics(instance(f"s-{one}", without="procs" if one == MANY[0] else "none") for one in MANY)

    monkeypatch.setattr(incus, "text", text)
    found = await machine_on(incus).usages.read(MANY)
    assert type(found[MANY[0]]) is EngineUnavailable
    assert [found[one] for one in MANY[1:]] == [USED] * (len(MANY) - 1)


async def test_app_that_is_started_has_its_disk_known(incus: MeteredIncus) -> None:
    machine = machine_on(incus)
    await machine.instances.index.load()
    machine.instances.index.note(
        {"name": "s-new", "location": "node2", "config": {"user.builderd.ip": "10.0.0.9", "user.builderd.disk": "d"}}
    )
    own = {"builder": "b", "disk": "d", "started": "1.0"}
    incus.has_instance("s-new", "node2", volumes=["disk-d"], **own)
    found = await machine.usages.read([*MANY, SandboxId("new")])
    assert found[SandboxId("new")] == USED
    assert incus.asked("s-new/state") == ["/instances/s-new/state"]


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


async def test_looks_at_an_app_that_does_not_come_up_become_rare(
    incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program that delivered its order has ended: each look is a program of Incus and one of the app."""
    machine, clock, looks = machine_on(incus), [100.0], list[float]()
    machine.usage._sandboxes._ordered.update(incus.instances)
    monkeypatch.setattr(port_looks, "monotonic", lambda: clock[0])

    async def look(*_: object) -> tuple[int, bytes]:
        looks.append(clock[0])
        return 0, b""

    monkeypatch.setattr(module, "run_to_end", look)
    with machine.sandboxes.deliveries.watch("s-0") as may_listen:
        # As the reconciler looks: closely at each fifth time.
        for number in range(6000):
            if may_listen() or number % 5 == 0:
                assert not (await machine.usage.listening(MANY[0])).sockets
            clock[0] += 0.1
    pauses = [later - earlier for earlier, later in pairwise(looks)]
    assert all(later > earlier - 0.15 for earlier, later in pairwise(pauses)), "but for the time between two questions"
    assert max(pauses[:5]) < 0.35, "an app that comes up soon is found soon"
    assert 1.9 < pauses[-1] < 2.2
    assert len(looks) < 350, "not six thousand"
    seen = len(looks)
    for _ in range(2):
        await machine.usage.listening(MANY[0])
    assert len(looks) == seen + 2, "where nobody waits, each question is a look"


@pytest.mark.parametrize("told", ["", "table\n", "table\n1 2\n", "table\n1 2 x\n"])
def test_look_without_its_own_time_takes_none(told: str) -> None:
    assert parse_look(told) == (told, 0.0)


def test_look_lists_each_socket_once_and_no_more_than_fit(tmp_path: Path) -> None:
    """Run its program with tables of this test's own."""
    for folder in ("net", "self"):
        (tmp_path / folder).mkdir()
    (tmp_path / "self/schedstat").write_text("400000000 7 1\n")
    table = "  sl  local_address\n" + "   0: 00000000:FFFF 00000000:0000 01 more\n" * 5000
    (tmp_path / "net/tcp").write_text(table + "   1: 00000000:1F40 00000000:0000 0A more\n" * 5000)
    program = LOOK[-1].replace("/proc/", f"{tmp_path}/")

    def look() -> tuple[list[str], float]:
        told = subprocess.run([*LOOK[:-1], program], check=True, capture_output=True, text=True).stdout
        text, seconds = parse_look(told)
        return text.splitlines(), seconds

    assert look() == (["0: 00000000:1F40 0 0A"], 0.4)
    lines = (f"   {port}: {0:032X}:{port:04X} {0:032X}:0000 0A more\n" for port in range(20_000, 1_000, -1))
    (tmp_path / "net/tcp6").write_text("  sl\n" + "".join(lines))
    listed, _ = look()
    assert (len(listed), listed[0], "0: 00000000:1F40 0 0A" in listed) == (
        MOST_SOCKETS,
        f"0: {0:032X}:03E9 0 0A",
        False,
    )


@contextlib.contextmanager
def unanswering(count: int) -> Iterator[list[int]]:
    """Ports that listen at the loopback address, with queues that are full: a caller waits."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            server = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            ports.append(server.getsockname()[1])
            held.enter_context(socket.create_connection(server.getsockname()))
        yield ports


async def test_ports_that_leave_callers_waiting_hold_up_a_look_once_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "DIAL_SECONDS", 0.2)
    with socket.socket() as closed, unanswering(20) as ports:
        closed.bind(("127.0.0.1", 0))
        refusing = closed.getsockname()[1]
        began = time.monotonic()
        found = await module._mark_ipv6_only("127.0.0.1", frozenset(("::", port) for port in [*ports, refusing]))
        assert time.monotonic() - began < 20 * 0.2
    assert {port for _, port in found.sockets} == {*ports, refusing}
    assert {at for at, port in found.sockets if port in ports} == {"::"}


async def test_only_the_lowest_ports_are_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    dialled = []

    async def refuse(_: str, port: int) -> bool:
        dialled.append(port)
        return False

    monkeypatch.setattr(module, "_answers", refuse)
    found = await module._mark_ipv6_only("10.99.0.20", frozenset(("::", port) for port in range(8000, 10_000)))
    assert dialled == list(range(8000, 8000 + module.MOST_DIALLED))
    assert {port for at, port in found.sockets if at == IPV6_ONLY} == set(dialled)
    assert len(found.sockets) == 2000
