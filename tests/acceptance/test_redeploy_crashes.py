"""Kill -9 of the service at every step of a new version's way: one version serves afterwards, and nothing is amiss.

The service kills itself before it touches the world, after that but before it is recorded, and after it was recorded
(the ``fault`` setting). The next one on the same data directory brings the version up, or the old one back.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, suppress
from typing import Any

import httpx
import pytest
from tests.acceptance.conftest import ServiceOfModule
from tests.acceptance.host_traces import assert_traces, settled_traces, traces, traces_at_rest
from tests.acceptance.live_service import PATIENCE, LiveService, body
from tests.acceptance.on_engines import OnIncus, OwnEngine
from tests.acceptance.redeploy_app import APP, FILES, SHY
from tests.acceptance.test_crash_matrix import crash_cases, delete_builders

pytestmark = [pytest.mark.root, pytest.mark.engines]

BEFORE = ("Review", "Install", "PlanTrial", "TryCandidate", "SetRoute", "StopSandbox", "CreateDisk")
AFTER = ("PlanSandbox", "StartSandbox", "AwaitListening", "Settle", "DropDisks")
STEPS = {
    "redeploy": (*BEFORE, "PutBundle", *AFTER),
    # The files are those that are there.
    "change": (*BEFORE, *AFTER),
    "rollback": (*BEFORE, "PutBundle", *AFTER),
    # It starts on trial and ends where it takes over: the old version is brought back on the disk that it had.
    "broken": ("StartSandbox", "RecordEnd", "GiveUp", "DropDisks"),
    "token": ("SetRoute", "StopSandbox", "PlanSandbox", "StartSandbox", "AwaitListening", "Settle"),
}
#: The others are for the soak; on fakes it is each of them every time.
OFTEN = {"redeploy-TryCandidate.done"}
CASES = crash_cases(STEPS, OFTEN)
CALLS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "redeploy": ("PUT", "", {"files": {**FILES, "new.txt": "new"}, "env": {"GREETING": "new"}}),
    "change": ("PATCH", "", {"env": {"GREETING": "new"}}),
    "rollback": ("POST", "/rollback", {"version": 1}),
    "broken": ("PUT", "", {"files": {**FILES, "main.py": SHY}}),
    "token": ("POST", "/service-token", None),
}
#: What answers afterwards, from which version; the builder has had two by then.
OUTCOMES = {
    "redeploy": ("new", 3),
    "change": ("new", 3),
    "rollback": ("first", 3),
    "broken": ("second", 2),
    "token": ("second", 2),
}


@pytest.fixture
def crashing(engine: OwnEngine | OnIncus, service_of_module: ServiceOfModule) -> LiveService:
    """A service that is up; whatever a failed case left over is no concern of the next one."""
    service = service_of_module(engine, used=True)
    if not service.is_up:
        service.start()
    delete_builders(service)
    return service


@pytest.mark.parametrize(("operation", "fault"), CASES)
def test_one_version_serves_after_a_kill_at_any_step(
    engine: OwnEngine | OnIncus, crashing: LiveService, operation: str, fault: str
) -> None:
    before = traces_at_rest(crashing)
    data = two_versions(crashing)
    # The first version's sandbox is removed while the second one serves already.
    one = "running" if engine.is_incus else "links"
    with_one = settled_traces(crashing, lambda seen: len(seen[one]) == len(before[one]) + 1)
    crashing.terminate()

    crashing.start(fault)
    ask(crashing, data, operation)
    crashing.wait_dead()
    assert crashing.process is not None
    assert crashing.process.returncode == -9, crashing.log_tail()

    crashing.start()
    wait_for_outcome(crashing, data, operation)
    assert crashing.visit(data, "note").text == "kept"
    assert crashing.visit(data, "settings").text == "changed by the app"
    assert_counts(crashing, with_one)
    assert_versions(crashing, data, operation)
    crashing.call("DELETE", f"/builders/{data['uuid']}")
    assert_traces(crashing, before)
    assert_ledger(crashing, data)


def two_versions(service: LiveService) -> dict[str, Any]:
    """A builder whose second version serves, with what the app wrote and what it changed of its files."""
    first = body("crash-test", files=FILES, env={"GREETING": "first"})
    data: dict[str, Any] = service.call("POST", "/builders", json=first).json()["data"]
    change = {"files": {**FILES, "main.py": APP + "\n"}, "env": {"GREETING": "second"}}
    response = service.call("PUT", f"/builders/{data['uuid']}", json=change)
    assert response.status_code == 200, response.text
    assert service.visit(data, "note", "POST", content="kept").status_code == 200
    assert service.visit(data, "settings", "POST", content="changed by the app").status_code == 200
    return data


def ask(service: LiveService, data: dict[str, Any], operation: str) -> None:
    """The service dies while it is at it, so the answer may never come."""
    method, path, change = CALLS[operation]
    options: dict[str, Any] = {} if change is None else {"json": change}
    with suppress(httpx.TransportError):
        service.call(method, f"/builders/{data['uuid']}{path}", headers={"Prefer": "respond-async"}, **options)


def wait_for_outcome(service: LiveService, data: dict[str, Any], operation: str) -> None:
    """The version that is to serve does, and nothing goes on any more."""
    wanted = OUTCOMES[operation]
    deadline = time.monotonic() + PATIENCE
    while not (is_at_rest(service, data["uuid"], operation) and served(service, data) == wanted):
        assert time.monotonic() < deadline, f"{served(service, data)}: {service.log_tail()}"
        time.sleep(0.05)


def served(service: LiveService, data: dict[str, Any]) -> tuple[str, int]:
    return service.visit(data).text, service.builder(data["uuid"])["version"]


def is_at_rest(service: LiveService, uuid: str, operation: str) -> bool:
    """No version waits for its outcome, and what was asked for was recorded."""
    with closing(database(service)) as opened:
        query = "SELECT candidate, handover, spare_disks, run = settled_run FROM builders WHERE id = ?"
        candidate, handover, spare, settled = opened.execute(query, (uuid,)).fetchone()
        statuses = [row[0] for row in opened.execute("SELECT status FROM versions WHERE builder_id = ?", (uuid,))]
    asked = operation == "token" or len(statuses) == 3
    return candidate is None and handover is None and spare == "[]" and settled and "pending" not in statuses and asked


def database(service: LiveService) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{service.data_dir}/builderd.db?mode=ro", uri=True, timeout=10)


def assert_counts(service: LiveService, with_one: dict[str, list[str]]) -> None:
    """Assert the mounts, links, groups, processes and disks of exactly one version; on Incus, its app and its route."""
    names = ("running", "routes") if "running" in with_one else ("mounts", "links", "cgroups", "processes")

    def counts(found: dict[str, list[str]]) -> dict[str, int]:
        return {name: len(found[name]) for name in names}

    deadline = time.monotonic() + PATIENCE
    while counts(traces(service)) != counts(with_one) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert counts(traces(service)) == counts(with_one)
    disks = {path.split("/")[0] for path in traces(service)["disks"]}
    assert len(disks) == 1


def assert_versions(service: LiveService, data: dict[str, Any], operation: str) -> None:
    found = service.call("GET", f"/builders/{data['uuid']}/versions").json()["data"]
    _, current = OUTCOMES[operation]
    assert [one["version"] for one in found if one["current"]] == [current]
    if operation == "broken":
        assert found[0]["status"] == "failed"
        assert "this is no trial" in found[0]["status_reason"]


def assert_ledger(service: LiveService, data: dict[str, Any]) -> None:
    """No second is paid twice or left out, and running time is that of the sandboxes that served.

    Trials are charged beside that, in segments of their own.
    """
    with closing(database(service)) as opened:
        paid = opened.execute(
            "SELECT billing, started_at, ended_at FROM ledger WHERE builder_id = ? AND billing != 'trial' ORDER BY id",
            (data["uuid"],),
        ).fetchall()
        ran = opened.execute(
            "SELECT started_at, end_at FROM sandboxes WHERE builder_id = ? AND NOT trial AND started_at IS NOT NULL"
            " ORDER BY started_at",
            (data["uuid"],),
        ).fetchall()
    assert [later[1] for later in paid[1:]] == [earlier[2] for earlier in paid[:-1]]
    assert paid[-1][2] is not None, "a deleted one is not paid for"
    assert [(start, end) for billing, start, end in paid if billing == "running"] == ran
