"""Starts, stops and ends of sandboxes: causes of an end, and no more asked of Incus than a caller must wait for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import image, network
from builderd.adapters.engines.incus.client import IncusError, IncusNotFound
from builderd.adapters.engines.incus.reports import Exit, make_end, make_report, state_of
from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import BuilderId, DiskId, SandboxId
from builderd.domain.resources import Resources
from builderd.domain.sandboxes import EndCause, SandboxReport, SandboxSpec, SandboxState
from builderd.domain.versions import Isolation

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


async def test_instances_kept_for_logs_are_deleted_without_a_kill_unless_they_run() -> None:
    incus = Incus()
    for name, status in (("s-1", "Stopped"), ("s-2", "Running")):
        incus.has_instance(name, status=status, removed="1", **OWN)
    incus.has_instance("s-3", status="Stopped", removed="1", **{**OWN, "builder": "another"})

    async def before(method: str, path: str) -> None:
        if method == "DELETE" and incus.instances[path.rpartition("/")[2]]["status"] == "Running":
            raise IncusError(400, "The instance is currently running, stop it first")

    incus.before = before
    machine = machine_on(incus)
    await machine.logs.delete_logs(BuilderId("b"))
    assert set(incus.instances) == {"s-3"}
    assert [body["force"] for body in incus.stops] == [True]
    assert await machine.instances.kept("b") == []


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


def test_app_that_exits_by_itself() -> None:
    assert cause(Exit(7, False, 150)) == (EndCause.EXITED, 7)


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


def test_states() -> None:
    assert state_of(instance("Running")) is SandboxState.RUNNING
    assert state_of(instance("Frozen")) is SandboxState.FROZEN
    assert state_of(instance("Stopped")) is SandboxState.EXITED


def test_recorded_end_wins_over_an_instance_that_was_started_again() -> None:
    end = make_end(KEYS, Exit(0, False, 150), host_restarted=False, now=200)
    report = make_report(instance("Running", end=end))
    assert (report.state, report.ip) == (SandboxState.EXITED, None)


def test_member_that_is_away_is_a_fault_of_the_machine() -> None:
    with pytest.raises(EngineUnavailable, match="node3") as raised:
        state_of(instance("Error"))
    assert raised.value.retry_after
