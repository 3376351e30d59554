"""Sandboxes of a member that is away: stopped at once for their builder, ended when the member returns."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import routes
from builderd.adapters.engines.incus.cluster import Member
from builderd.adapters.engines.incus.errors import error_of
from builderd.adapters.engines.incus.machine import Machine
from builderd.adapters.engines.incus.reports import make_end
from builderd.domain.errors import InvalidState
from builderd.domain.ids import DiskId, SandboxId
from builderd.domain.members import MemberAway
from builderd.domain.sandboxes import EndCause, SandboxState

NODE2 = Member("node2", "10.0.0.2", online=True)
ONE = SandboxId("1")
OWN = {"builder": "b", "disk": "d", "ip": "10.99.0.20", "started": "1.0"}


@pytest.fixture(autouse=True)
def ip(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: str) -> str:
        return ""

    monkeypatch.setattr(routes, "_ip", nothing)


async def stopped_while_away(incus: ScriptedIncus) -> Machine:
    """A service that stopped a sandbox whose member was away."""
    incus.has_instance("s-1", status="Error")
    machine = machine_on(incus)
    machine.members._away = {"node2": 0.0}
    with pytest.raises(MemberAway, match="node2"):
        await machine.sandboxes.report(ONE)
    report = await machine.sandboxes.stop(ONE, 10)
    assert report.end
    assert (report.state, report.end.cause) == (SandboxState.EXITED, EndCause.STOPPED)
    machine.members._away = {}
    return machine


def returns(incus: ScriptedIncus, status: str) -> None:
    incus.has_instance("s-1", status=status, volumes=["disk-d"], **OWN)
    incus.has_volume("disk-d")
    incus.volumes["disk-d"]["used_by"] = ["/1.0/instances/s-1?project=builderd"]


async def test_stop_is_answered_at_once_and_stands_until_the_member_returns() -> None:
    incus = ScriptedIncus()
    machine = await stopped_while_away(incus)
    assert (await machine.sandboxes.report(ONE)).state is SandboxState.EXITED
    await machine.sandboxes.remove(ONE)
    assert incus.project_config["user.builderd.end.s-1"] == "node2"
    assert incus.instances["s-1"]["status"] == "Error"


@pytest.mark.parametrize("status", ["Running", "Frozen", "Stopped"])
async def test_app_is_ended_when_its_member_returns(status: str) -> None:
    incus = ScriptedIncus()
    machine = await stopped_while_away(incus)
    returns(incus, status)
    await machine.on_arrival([NODE2])
    found = incus.instances["s-1"]
    assert found["status"] == "Stopped"
    assert "disk-d" not in incus.attached("s-1")
    assert found["config"]["user.builderd.removed"]
    assert "stopped" in found["config"]["user.builderd.end"]
    assert "user.builderd.end.s-1" not in incus.project_config
    assert (await machine.sandboxes.report(ONE)).state is SandboxState.ABSENT


async def test_nothing_is_left_of_a_builder_that_was_deleted() -> None:
    incus = ScriptedIncus()
    machine = await stopped_while_away(incus)
    await machine.lost_disks._deferred.note("d", "node2")
    returns(incus, "Running")
    await machine.on_arrival([NODE2])
    assert not incus.instances
    assert not incus.volumes
    assert not [key for key in incus.project_config if key.startswith("user.builderd")]


async def test_app_whose_state_is_unknown_on_a_member_that_answers_is_ended_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    incus = ScriptedIncus()
    incus.has_instance("s-1", status="Error", **OWN)
    machine = machine_on(incus)
    machine.sandboxes._ordered.add("s-1")

    async def written(found: dict[str, Any]) -> dict[str, Any]:
        end = make_end({"stopping": "1.0", "started": "1.0"}, None, host_restarted=False, now=1.0)
        return {**found, "config": {**found["config"], "user.builderd.end": end}}

    monkeypatch.setattr(machine.sandboxes._ends, "write", written)
    await machine.sandboxes.stop(ONE, 10)
    assert incus.instances["s-1"]["status"] == "Stopped"
    assert "user.builderd.end.s-1" not in incus.project_config


async def test_next_service_ends_what_an_earlier_one_was_to_end() -> None:
    incus = ScriptedIncus()
    await stopped_while_away(incus)
    after = machine_on(incus)
    await after.lost_sandboxes.load()
    assert (await after.sandboxes.report(ONE)).state is SandboxState.EXITED
    returns(incus, "Running")
    await after.lost_sandboxes.end_on({"node3"})
    assert incus.instances["s-1"]["status"] == "Running"
    await after.lost_sandboxes.end_on({"node2"})
    assert incus.instances["s-1"]["status"] == "Stopped"


async def test_start_on_its_disk_ends_it_first() -> None:
    """The member answers before the service has seen its return."""
    incus = ScriptedIncus()
    machine = await stopped_while_away(incus)
    returns(incus, "Running")
    machine.sandboxes._ordered.add("s-1")
    await machine.sandboxes.refuse_while_used(DiskId("d"))
    assert incus.instances["s-1"]["status"] == "Stopped"
    incus.has_instance("s-2", **OWN)
    incus.volumes["disk-d"]["used_by"] = ["/1.0/instances/s-2"]
    machine.sandboxes._ordered.add("s-2")
    with pytest.raises(InvalidState):
        await machine.sandboxes.refuse_while_used(DiskId("d"))


async def test_app_that_outlasts_its_grace_on_a_busy_machine_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    incus = ScriptedIncus()
    incus.has_instance("s-1", **OWN)
    machine = machine_on(incus)
    machine.sandboxes._ordered.add("s-1")
    asked: list[bool] = []
    call = incus.call

    async def slow(method: str, path: str, body: Any = None, **query: str) -> Any:
        if path.endswith("/state"):
            asked.append(body["force"])
            if not body["force"]:
                text = 'Failed shutting down instance, status is "Running": context deadline exceeded'
                raise error_of(400, text, f"{method} {path}")
        return await call(method, path, body, **query)

    async def written(found: dict[str, Any]) -> dict[str, Any]:
        end = make_end({"stopping": "1.0", "started": "1.0"}, None, host_restarted=False, now=1.0)
        return {**found, "config": {**found["config"], "user.builderd.end": end}}

    monkeypatch.setattr(machine.sandboxes._ends, "write", written)
    monkeypatch.setattr(incus, "call", slow)
    assert (await machine.sandboxes.stop(ONE, 10)).state is SandboxState.EXITED
    assert asked == [False, True]
