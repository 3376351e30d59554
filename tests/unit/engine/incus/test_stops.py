"""Starts, stops, ends, usage and logs of sandboxes: no more asked of Incus than a caller must wait for."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.engine.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.core.errors import EngineUnavailable
from builderd.core.ids import BuilderId, DiskId, SandboxId
from builderd.core.members import MemberAway
from builderd.core.resources import Resources
from builderd.engine.incus import image, network
from builderd.engine.incus import reports as module
from builderd.engine.incus.client import IncusError, IncusNotFound, error_of
from builderd.engine.incus.image import MOST_SOCKETS, PROGRAMS
from builderd.engine.incus.logs import page_of, parse
from builderd.engine.incus.reports import Exit, make_end, make_report, parse_metrics, state_of
from builderd.sandboxes.model import IPV6_ONLY, EndCause, SandboxReport, SandboxSpec, SandboxState, SandboxUsage
from builderd.versions.model import Isolation

ONE = SandboxId("1")
OWN = {"builder": "b", "disk": "d", "ip": "10.99.0.20", "started": "1.0"}
#: Code, kills for memory and time of an app that ends long after each stop of these tests.
RECORD = b"143 0 9999999999.5\n"


class Incus(ScriptedIncus):
    """Has the files of instances in memory; ``asked`` are its reads, ``stops`` the bodies of stops."""

    def __init__(self, **files: bytes) -> None:
        super().__init__()
        self.files = {image.ORDERED: b"", **files}
        self.asked: list[str] = []
        self.stops: list[dict[str, Any]] = []
        self.refuses_to_stop = False

    async def get(self, path: str, **query: str) -> Any:
        self.asked.append(path)
        return await super().get(path, **query)

    async def file(self, instance: str, path: str) -> bytes:
        await asyncio.sleep(0)
        self.asked.append(path)
        if path not in self.files:
            raise IncusNotFound(404, path)
        return self.files[path]

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        if path.endswith("/state"):
            self.stops.append(body)
            if self.refuses_to_stop and not body["force"]:
                raise IncusError(500, "Failed shutting down instance: context deadline exceeded")
        return await super().call(method, path, body, **query)


async def test_app_that_ends_in_time_is_not_killed_and_its_end_is_read_once() -> None:
    incus = Incus(**{image.EXIT_RECORD: RECORD})
    incus.has_instance("s-1", **OWN)
    sandboxes = machine_on(incus).sandboxes
    observed: list[asyncio.Task[SandboxReport]] = []

    async def after(method: str, path: str) -> None:
        if path.endswith("/state"):
            # As the event of its end has it done.
            observed.append(asyncio.create_task(sandboxes.report(ONE)))
            for _ in range(3):
                await asyncio.sleep(0)

    incus.after = after
    report = await sandboxes.stop(ONE, 10)
    assert report.end
    assert (report.end.cause, report.end.exit_code) == (EndCause.STOPPED, 143)
    assert (await observed[0]).end == report.end
    assert [body["force"] for body in incus.stops] == [False]
    assert incus.asked.count(image.EXIT_RECORD) == 1
    written = [path for method, path in incus.changes if method == "PATCH"]
    assert written == ["/instances/s-1"] * 2, "stopping, and the end"
    assert await sandboxes.report(ONE) == report


@pytest.mark.parametrize(("grace", "forced"), [(10, [False, True]), (0, [True])])
async def test_app_that_does_not_end_is_killed(grace: float, forced: list[bool]) -> None:
    incus = Incus()
    incus.refuses_to_stop = True
    incus.has_instance("s-1", **OWN)
    report = await machine_on(incus).sandboxes.stop(ONE, grace)
    assert report.end
    assert (report.end.cause, report.end.exit_code) == (EndCause.STOPPED, None)
    assert [body["force"] for body in incus.stops] == forced


async def test_end_before_the_stop_is_the_apps_own() -> None:
    incus = Incus(**{image.EXIT_RECORD: b"3 0 5.0\n"})
    incus.has_instance("s-1", **OWN)
    report = await machine_on(incus).sandboxes.stop(ONE, 10)
    assert report.end
    assert (report.end.cause, report.end.exit_code) == (EndCause.EXITED, 3)


SPEC = SandboxSpec(
    SandboxId("1"), BuilderId("b"), DiskId("d"), "h", "python3 main.py", 8000, {}, Resources(), Isolation.STANDARD
)


async def test_removed_sandbox_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: str) -> str:
        return ""

    monkeypatch.setattr(network, "_ip", nothing)
    incus = ScriptedIncus()
    incus.has_volume("disk-d")
    incus.has_instance("s-1", status="Stopped", builder="b", removed="1", end="ended")
    with pytest.raises(IncusError, match="Nothing is started"):
        await machine_on(incus).sandboxes.start(SPEC)
    config = incus.instances["s-1"]["config"]
    assert "user.builderd.removed" not in config
    assert config["user.builderd.ip"]


KEYS = {"builder": "b", "started": "100", "ip": "10.99.0.9"}


def cause(exit_: Exit | None, *, restarted: bool = False, **own: str) -> tuple[str, int | None]:
    end = json.loads(make_end({**KEYS, **own}, exit_, host_restarted=restarted, now=200))
    return end["cause"], end["code"]


def test_memory_is_the_cause_only_of_a_failure() -> None:
    assert cause(Exit(137, True, 150)) == (EndCause.OUT_OF_MEMORY, 137)
    assert cause(Exit(0, True, 150)) == (EndCause.EXITED, 0)


def test_stop_by_the_service_with_and_without_a_record() -> None:
    assert cause(Exit(143, False, 151), stopping="150") == (EndCause.STOPPED, 143)
    assert cause(None, stopping="150") == (EndCause.STOPPED, None)
    assert cause(Exit(1, False, 120), stopping="150") == (EndCause.EXITED, 1)


def test_machine_that_restarts_under_it() -> None:
    assert cause(None, restarted=True) == (EndCause.HOST_RESTARTED, None)
    assert cause(Exit(143, False, 150), restarted=True) == (EndCause.HOST_RESTARTED, None)
    assert cause(Exit(3, False, 150), restarted=True) == (EndCause.EXITED, 3)


def test_end_without_a_record_is_a_lost_monitor() -> None:
    assert cause(None) == (EndCause.MONITOR_LOST, None)


def instance(status: str, **own: str) -> dict[str, object]:
    config = {f"user.builderd.{key}": value for key, value in {**KEYS, **own}.items()}
    return {"name": "s-1", "status": status, "location": "node3", "config": config}


def test_recorded_end_wins_over_an_instance_that_was_started_again() -> None:
    end = make_end(KEYS, Exit(0, False, 150), host_restarted=False, now=200)
    report = make_report(instance("Running", end=end))
    assert (report.state, report.ip) == (SandboxState.EXITED, None)


def test_member_that_is_away_is_a_fault_of_the_machine() -> None:
    with pytest.raises(EngineUnavailable, match="node3") as raised:
        state_of(instance("Error"))
    assert raised.value.retry_after


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


def written(name: str, project: str = "builderd", *, without: str = "none") -> str:
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
        return metrics(written(name) for name in running)

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


async def test_member_that_fails_is_the_error_of_its_sandboxes_alone(incus: MeteredIncus) -> None:
    incus.failing["node3"] = EngineUnavailable("no answer")
    found = await machine_on(incus).sandboxes.usages(MANY)
    assert [found[one] for one in MANY[::2]] == [USED] * (len(MANY) // 2)
    assert {str(found[one]) for one in MANY[1::2]} == {"no answer"}


def test_only_running_sandboxes_of_the_project_are_in_the_metrics() -> None:
    others = [written("s-3", project="other"), written("builderd-helper"), written("build-4")]
    used = dict.fromkeys(("s-1", "s-2"), replace(USED, disk_bytes=0))
    assert parse_metrics(metrics([written("s-1"), written("s-2"), *others]), "builderd") == used
    assert parse_metrics(metrics([written("s-1")]), "build.rd") == {}
    assert parse_metrics(metrics([]), "builderd") == {}


@pytest.mark.parametrize("text", [b"", b"\n", metrics([written("s-1")])[:-1], metrics([written("s-1")])[:300]])
def test_metrics_without_their_end_are_refused(text: bytes) -> None:
    with pytest.raises(EngineUnavailable, match="cut off"):
        parse_metrics(text, "builderd")


@pytest.mark.parametrize("without", ["cpu", "MemFree", "MemTotal", "receive", "transmit", "procs"])
def test_instance_with_a_part_of_its_values_is_unreadable(without: str) -> None:
    text = metrics([written("s-1", without=without), written("s-2")])
    found = parse_metrics(text, "builderd")
    assert found["s-1"] is None
    assert found["s-2"]


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
    program = PROGRAMS["ports"].replace("/proc/", f"{tmp_path}/")

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
    for _ in range(5):
        assert (await machine.sandboxes.listening(MANY[0], 8000)).sockets == {(IPV6_ONLY, 8000)}
    is_open = True
    assert (await machine.sandboxes.listening(MANY[0], 8000)).reachable(8000)
    assert lists == [1]


OUT = parse("out", b"2026-11-28 02:00:00.000000001  one\n2026-11-28 02:00:00.000000001  two\n2026-11-28 02:00:02.5  x")
ERR = parse("err", b"2026-11-28 02:00:01.000000000  error\n")
THREE = parse("out", b"2026-11-28 02:00:02.500000000  three\n")


def texts(**changes: object) -> tuple[list[str], str, bool]:
    values: dict[str, object] = {"cursor": "", "tail": None, "since": None, "limit": None}
    page = page_of({"out": [*OUT, *THREE], "err": ERR}, **{**values, **changes})  # type: ignore[arg-type]
    return [line.text for line in page.lines], page.cursor, page.more


def test_line_that_comes_late_in_the_other_stream_is_not_lost() -> None:
    cursor = page_of({"out": [*OUT, *THREE], "err": []}, "", None, None, None).cursor
    page = page_of({"out": [*OUT, *THREE], "err": ERR}, cursor, None, None, None)
    assert [line.text for line in page.lines] == ["error"]


def test_cursor_is_valid_when_earlier_files_are_gone() -> None:
    cursor = texts(limit=2)[1]
    page = page_of({"out": THREE, "err": []}, cursor, None, None, None)
    assert [line.text for line in page.lines] == ["three"]
