"""Usage of many sandboxes is read by the metrics of their members, and says which cannot be read."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import reports as module
from builderd.adapters.engines.incus.client import error_of
from builderd.adapters.engines.incus.image import MOST_SOCKETS, PORTS
from builderd.adapters.engines.incus.reports import parse_metrics
from builderd.domain.database_lease import MemberAway
from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import SandboxId
from builderd.domain.sandboxes import IPV6_ONLY, SandboxUsage

#: Lines of one instance: name of the metric, its labels before ``name``, its value.
VALUES = (
    ("cpu_seconds_total", 'cpu="0",mode="system",', "0.25"),
    ("cpu_seconds_total", 'cpu="0",mode="user",', "1.25"),
    ("cpu_seconds_total", 'cpu="1",mode="user",', "5e-05"),
    ("cpu_effective_total", "", "2"),
    ("disk_read_bytes_total", 'device="loop7",', "1.323008e+06"),
    ("filesystem_size_bytes", 'device="/dev/loop7",fstype="btrfs",mountpoint="/app",', "4.294967296e+09"),
    ("memory_Cached_bytes", "", "135168"),
    ("memory_MemFree_bytes", "", "1.24217728e+08"),
    ("memory_MemTotal_bytes", "", "1.34217728e+08"),
    ("network_receive_bytes_total", 'device="lo",', "1"),
    ("network_receive_bytes_total", 'device="eth0",', "7"),
    ("network_transmit_bytes_total", 'device="eth0",', "8"),
    ("procs_total", "", "4"),
)
MANY = [SandboxId(str(number)) for number in range(8)]
USED = SandboxUsage(1.50005, 10_000_000, 3, 7, 8, 4)


def line(kind: str, labels: str, value: str, name: str, project: str = "builderd") -> str:
    return f'incus_{kind}{{{labels}name="{name}",project="{project}",type="container"}} {value}\n'


def instance(name: str, project: str = "builderd", *, without: str = "none") -> str:
    return "".join(line(*one, name, project) for one in VALUES if without not in "".join(one))


def metrics(instances: Iterable[str]) -> bytes:
    """Return the answer of a member with these instances, in parts by kind as Incus 6.0 writes them."""
    lines = sorted("".join(instances).splitlines())
    server = ("# TYPE incus_go_heap_objects gauge", "incus_go_heap_objects 135012", "incus_uptime_seconds 3.5")
    return "\n".join([*lines, *server, "# EOF\n"]).encode()


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

    async def text(self, path: str, **query: str) -> bytes:
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
def incus() -> MeteredIncus:
    return MeteredIncus()


async def test_many_are_read_by_the_metrics_of_their_members(incus: MeteredIncus) -> None:
    machine = machine_on(incus)
    assert await machine.sandboxes.usages(MANY) == dict.fromkeys(MANY, USED)
    assert sorted(incus.asked("/metrics")) == ["/metrics node2", "/metrics node3"]
    incus.paths.clear()
    assert await machine.sandboxes.usages(MANY) == dict.fromkeys(MANY, USED)
    assert sorted(incus.paths) == ["/metrics node2", "/metrics node3"]


async def test_used_bytes_of_disks_are_read_now_and_then_some_at_a_time(
    incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DISKS_AT_ONCE", 5)
    machine = machine_on(incus)

    async def bytes_of_disks() -> list[int]:
        found = await machine.sandboxes.usages(MANY)
        return [one.disk_bytes for one in found.values() if isinstance(one, SandboxUsage)]

    assert await bytes_of_disks() == [3] * 5 + [0] * 3
    assert await bytes_of_disks() == [3] * 8
    incus.used = 5
    assert await bytes_of_disks() == [3] * 8
    assert len(incus.asked("/state")) == len(MANY)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2 * module.DISK_SECONDS)
    assert await bytes_of_disks() == [5] * 5 + [3] * 3
    assert await bytes_of_disks() == [5] * 8


async def test_ended_apps_are_left_out_and_lost_members_are_named(incus: MeteredIncus) -> None:
    machine = machine_on(incus)
    away, noted, ended, removed, gone, *_ = (f"s-{sandbox}" for sandbox in MANY)
    incus.has_instance(away, "node9", status="Error")
    machine.members._away = {"node9": 0.0}
    incus.has_instance(noted, status="Error")
    machine.lost._ending.add(noted)
    incus.instances[ended]["status"] = incus.instances[removed]["status"] = "Stopped"
    incus.instances[removed]["config"]["user.builderd.removed"] = "1"
    del incus.instances[gone]
    found = await machine.sandboxes.usages(MANY)
    assert found.keys() == {MANY[0], *MANY[5:]}
    assert isinstance(found[MANY[0]], MemberAway)


async def test_list_that_fails_is_the_error_of_each(incus: MeteredIncus) -> None:
    async def fail(path: str, **query: str) -> Any:
        raise EngineUnavailable("no quorum")

    machine = machine_on(incus)
    incus.get = fail  # type: ignore[method-assign]
    found = await machine.sandboxes.usages(MANY)
    assert [str(error) for error in found.values()] == ["no quorum"] * len(MANY)


async def test_member_that_fails_is_the_error_of_its_sandboxes_alone(incus: MeteredIncus) -> None:
    incus.failing["node3"] = EngineUnavailable("no answer")
    found = await machine_on(incus).sandboxes.usages(MANY)
    assert [found[one] for one in MANY[::2]] == [USED] * (len(MANY) // 2)
    assert {str(found[one]) for one in MANY[1::2]} == {"no answer"}


async def test_instance_that_cannot_be_read_is_the_error_of_its_sandbox_alone(
    incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def text(path: str, **query: str) -> bytes:
        return metrics(instance(f"s-{one}", without="procs" if one == MANY[0] else "none") for one in MANY)

    monkeypatch.setattr(incus, "text", text)
    found = await machine_on(incus).sandboxes.usages(MANY)
    assert type(found[MANY[0]]) is EngineUnavailable
    assert [found[one] for one in MANY[1:]] == [USED] * (len(MANY) - 1)


def test_only_running_sandboxes_of_the_project_are_in_the_metrics() -> None:
    others = [instance("s-3", project="other"), instance("builderd-helper"), instance("build-4")]
    used = dict.fromkeys(("s-1", "s-2"), replace(USED, disk_bytes=0))
    assert parse_metrics(metrics([instance("s-1"), instance("s-2"), *others]), "builderd") == used
    assert parse_metrics(metrics([instance("s-1")]), "build.rd") == {}
    assert parse_metrics(metrics([]), "builderd") == {}


@pytest.mark.parametrize("text", [b"", b"\n", metrics([instance("s-1")])[:-1], metrics([instance("s-1")])[:300]])
def test_metrics_without_their_end_are_refused(text: bytes) -> None:
    with pytest.raises(EngineUnavailable, match="cut off"):
        parse_metrics(text, "builderd")


@pytest.mark.parametrize("without", ["cpu", "MemFree", "MemTotal", "receive", "transmit", "procs"])
def test_instance_with_a_part_of_its_values_is_unreadable(without: str) -> None:
    text = metrics([instance("s-1", without=without), instance("s-2")])
    found = parse_metrics(text, "builderd")
    assert found["s-1"] is None
    assert found["s-2"]


def test_app_above_its_limit_uses_more_than_the_limit() -> None:
    text = metrics([instance("s-1", without="MemFree"), line("memory_MemFree_bytes", "", "-4096", "s-1")])
    found = parse_metrics(text, "builderd")["s-1"]
    assert found
    assert found.memory_bytes == 134_217_728 + 4096


@pytest.mark.parametrize(("status", "words"), [(500, "Invalid PID '\ufffd'"), (404, "Instance not found")])
async def test_sandbox_that_has_just_ended_has_no_usage(incus: MeteredIncus, status: int, words: str) -> None:
    incus.failing["states"] = error_of(status, words, "GET /instances/s-0/state")
    sandboxes = machine_on(incus).sandboxes
    assert await sandboxes.usage(MANY[0]) is None


def test_each_socket_is_listed_once_and_no_more_than_fit(tmp_path: Path) -> None:
    """Run its program with tables of this test's own."""
    (tmp_path / "net").mkdir()
    table = "  sl  local_address\n" + "   0: 00000000:FFFF 00000000:0000 01 more\n" * 5000
    (tmp_path / "net/tcp").write_text(table + "   1: 00000000:1F40 00000000:0000 0A more\n" * 5000)
    program = PORTS.replace("/proc/", f"{tmp_path}/")

    def listed() -> list[str]:
        done = subprocess.run(["perl", "-e", program], check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    assert listed() == ["0: 00000000:1F40 0 0A"]
    lines = (f"   {port}: {0:032X}:{port:04X} {0:032X}:0000 0A more\n" for port in range(20_000, 1_000, -1))
    (tmp_path / "net/tcp6").write_text("  sl\n" + "".join(lines))
    found = listed()
    assert (len(found), found[0], "0: 00000000:1F40 0 0A" in found) == (MOST_SOCKETS, f"0: {0:032X}:03E9 0 0A", False)


async def test_ports_are_listed_where_the_apps_own_one_does_not_answer(
    incus: MeteredIncus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list is a program of Incus and of the app: while a port is waited for there is one a second at most."""
    machine, lists, is_open = machine_on(incus), [0], False
    incus.instances["s-0"]["config"] |= {"user.builderd.ip": "10.99.0.20", "user.builderd.port": "8000"}

    async def run(*_: object) -> tuple[int, bytes]:
        lists[0] += 1
        return 0, b"0: 00000000000000000000000000000000:1F40 0 0A\n"

    async def answers(ip: str, port: int) -> bool:
        assert (ip, port) == ("10.99.0.20", 8000)
        return is_open

    monkeypatch.setattr(module, "run_to_end", run)
    monkeypatch.setattr(module, "_answers", answers)
    with machine.sandboxes.watch_port(MANY[0]) as may_listen:
        for _ in range(5):
            assert (await machine.sandboxes.listening(MANY[0])).sockets == {(IPV6_ONLY, 8000)}
        assert lists == [1]
        assert not may_listen()
        is_open = True
        while not may_listen():
            await asyncio.sleep(0.01)
        assert (await machine.sandboxes.listening(MANY[0])).reachable(8000)
    assert lists == [1]
