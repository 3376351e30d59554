"""Kill -9 of the service at every step of falling asleep, waking and idling out: the next one goes on from there.

Visitors are answered meanwhile, the app is started as often as it must and not more, and the ledger agrees with the
events, to the microsecond.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from tests.acceptance.conftest import ServiceOfModule
from tests.acceptance.host_traces import assert_traces, traces_at_rest
from tests.acceptance.idling import COUNTING_APP, eventually, make_idle, until_frozen, until_idled
from tests.acceptance.live_service import PATIENCE, LiveService
from tests.acceptance.on_engines import OnIncus, OwnEngine
from tests.acceptance.test_crash_matrix import crash_cases, delete_builders

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.engines]

FREEZE_AFTER = "BUILDERD_IDLE__FREEZE_AFTER"
#: What the service does next to a builder that is …
STEPS = {
    "freeze": ("SetRoute", "Freeze"),
    "thaw": ("Thaw", "SetRoute"),
    "wake": ("SetRoute", "PlanSandbox", "StartSandbox", "AwaitListening", "Settle"),
    "idle stop": ("SetRoute", "StopSandbox", "Settle"),
}
#: On fakes every step is tried in every run.
CASES = crash_cases(STEPS, ())


@pytest.fixture
def crashing(engine: OwnEngine | OnIncus, service_of_module: ServiceOfModule) -> LiveService:
    """A service that is up; whatever a failed case left over is no concern of the next one."""
    service = service_of_module(engine, used=True, **{FREEZE_AFTER: "0"})
    live(service, freezes=False)
    delete_builders(service)
    return service


def live(service: LiveService, *, freezes: bool, fault: str | None = None) -> None:
    """Start the service; with some settings nothing freezes, so that the kill hits the intended step."""
    if service.is_up:
        service.terminate()
    service.settings = {**service.settings, FREEZE_AFTER: "1" if freezes else "0"}
    service.start(fault)


@pytest.mark.parametrize(("operation", "fault"), CASES)
def test_killed_service_continues_freeze_wake_or_stop_after_restart(
    crashing: LiveService, operation: str, fault: str
) -> None:
    before = traces_at_rest(crashing)
    data = prepare(crashing, operation)
    with ThreadPoolExecutor(1) as pool:
        live(crashing, freezes=operation in ("freeze", "thaw"), fault=fault)
        visit = pool.submit(visited, crashing, data) if operation in ("thaw", "wake") else None
        crashing.wait_dead()
        assert crashing.process is not None
        assert crashing.process.returncode == -9, crashing.log_tail()

        live(crashing, freezes=operation == "freeze")
        starts = "1" if operation in ("freeze", "thaw") else "2"
        assert visit is None or visit.result(PATIENCE) == (200, starts)
    assert_outcome(crashing, operation, data)
    assert visited(crashing, data) == (200, starts)
    eventually(lambda: crashing.builder(data["uuid"])["status"] == "running")
    eventually(lambda: ledger(crashing, data) == told(crashing, data))
    crashing.call("DELETE", f"/builders/{data['uuid']}")
    assert_traces(crashing, before)


def prepare(service: LiveService, operation: str) -> dict[str, Any]:
    """The builder as the operation finds it; the service may be down then."""
    data = service.create("napper", COUNTING_APP, auto_stop_interval=10)
    if operation == "thaw":
        live(service, freezes=True)
        until_frozen(service, data)
    if operation == "wake":
        until_idled(service, data)
    if operation == "idle stop":
        service.terminate()  # or this life would stop it already
        make_idle(service, data)
    return data


def visited(service: LiveService, data: Mapping[str, Any]) -> tuple[int, str]:
    """Visit, and visit again on ``Retry-After``: a restart may take longer than a request is paused."""
    deadline = time.monotonic() + PATIENCE
    while "retry-after" in (answer := service.visit(data)).headers and time.monotonic() < deadline:
        time.sleep(0.1)
    return answer.status_code, answer.text


def assert_outcome(service: LiveService, operation: str, data: Mapping[str, Any]) -> None:
    if operation == "freeze":
        until_frozen(service, data)
    elif operation == "idle stop":
        stopped = service.wait_status(data["uuid"], "stopped")
        assert stopped["status_reason"] == "idle for 10 minutes"


Turn = tuple[str, str]


def ledger(service: LiveService, data: Mapping[str, Any]) -> list[Turn]:
    """Return the billed states and their times; assert that no time is missing or billed twice."""
    with contextlib.closing(sqlite3.connect(service.data_dir / "builderd.db", timeout=10)) as database:
        query = "SELECT billing, started_at, ended_at FROM ledger WHERE builder_id = ? ORDER BY id"
        rows = database.execute(query, (data["uuid"],)).fetchall()
    for (_, _, end), (_, start, _) in pairwise(rows):
        assert end == start
    assert rows[-1][2] is None
    return [(billing, start.replace(" ", "T")) for billing, start, _ in rows[1:]]  # the first is of the disk alone


def told(service: LiveService, data: Mapping[str, Any]) -> list[Turn]:
    """Return the states and their times by the events."""
    billing = {"started": "running", "thawed": "running", "frozen": "frozen", "ended": "stopped"}
    answer = service.call("GET", f"/builders/{data['uuid']}/events?per_page=100&type=sandbox.*")
    happened = [(event["type"].removeprefix("sandbox."), event["time"]) for event in reversed(answer.json()["data"])]
    return [(billing[what], time.removesuffix("Z")) for what, time in happened]
