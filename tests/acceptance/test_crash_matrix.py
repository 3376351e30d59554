"""Kill -9 of the service at every step of create, start, stop and delete: it comes back whole from each.

For each step there are three moments: before the world is touched, after that but before it is recorded, and after
it was recorded. The service kills itself there (the ``fault`` setting); a new one on the same data directory must
bring the builder where it was wanted, and leave nothing over.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import httpx
import pytest
from _pytest.mark.structures import ParameterSet
from tests.acceptance.conftest import ServiceOfModule
from tests.acceptance.host_traces import assert_traces, traces_at_rest
from tests.acceptance.live_service import LiveService, body
from tests.acceptance.on_engines import OnIncus, OwnEngine

MOMENTS = ("begun", "done", "recorded")


def crash_cases(steps: Mapping[str, Sequence[str]], often: Collection[str]) -> list[ParameterSet]:
    """Return an operation and a point of each of its steps; those that are not tried ``often`` are slow.

    ``often`` names the ids of cases, such as ``create-Review.done``.
    """
    cases = [(name, f"{step}.{moment}") for name, found in steps.items() for step in found for moment in MOMENTS]
    named = {f"{name}-{fault}": (name, fault) for name, fault in cases}
    assert named.keys() >= set(often), "no step has such a point"
    return [
        pytest.param(*case, id=name, marks=[] if name in often else [pytest.mark.slow]) for name, case in named.items()
    ]


def delete_builders(service: LiveService) -> None:
    """Delete what a failed case left over: it is no concern of the next one."""
    for builder in service.call("GET", "/builders").json()["data"]:
        service.call("DELETE", f"/builders/{builder['uuid']}")


pytestmark = [pytest.mark.root, pytest.mark.engines]

START = ("PlanSandbox", "StartSandbox", "AwaitListening")
STEPS = {
    "create": ("SetRoute", "Review", "Install", "CreateDisk", "PutBundle", *START, "CheckApp", "Settle"),
    "stop": ("SetRoute", "StopSandbox", "Settle"),
    "start": ("SetRoute", *START, "Settle"),
    "delete": ("RemoveRoute", "StopSandbox", "Forget"),
}
#: The first is tried in every run, as a killed create is in test_api_clients.py. script/soak tries the others; on fakes
#: every step is tried in every run.
CASES = crash_cases(STEPS, {"delete-StopSandbox.done"})


@pytest.fixture
def crashing(engine: OwnEngine | OnIncus, service_of_module: ServiceOfModule) -> LiveService:
    """A service that is up; whatever a failed case left over is no concern of the next one."""
    service = service_of_module(engine, used=True)
    if not service.is_up:
        service.start()
    delete_builders(service)
    return service


@pytest.mark.parametrize(("operation", "fault"), CASES)
def test_a_service_killed_there_comes_back_whole(crashing: LiveService, operation: str, fault: str) -> None:
    before = traces_at_rest(crashing)
    uuid = prepare(crashing, operation)
    crashing.terminate()

    crashing.start(fault)
    uuid = act(crashing, operation, uuid)
    crashing.wait_dead()
    assert crashing.process is not None
    assert crashing.process.returncode == -9, crashing.log_tail()

    crashing.start()
    uuid = assert_outcome(crashing, operation, uuid)
    if operation != "delete":
        crashing.call("DELETE", f"/builders/{uuid}")
    assert_traces(crashing, before)


def prepare(service: LiveService, operation: str) -> str:
    """The builder as the operation finds it; none for create."""
    if operation == "create":
        return ""
    uuid: str = service.create("crash-test")["uuid"]
    if operation == "start":
        assert service.call("POST", f"/builders/{uuid}/stop").status_code == 200
    return uuid


def act(service: LiveService, operation: str, uuid: str) -> str:
    """Ask for the operation; the service dies while it is at it, so the answer may never come."""
    try:
        if operation == "create":
            asked = service.call("POST", "/builders", json=body("crash-test"), headers={"Prefer": "respond-async"})
            return str(asked.json()["data"]["uuid"])
        if operation == "delete":
            service.call("DELETE", f"/builders/{uuid}")
        else:
            service.call("POST", f"/builders/{uuid}/{operation}")
    except httpx.TransportError:
        pass
    return uuid


def assert_outcome(service: LiveService, operation: str, uuid: str) -> str:
    """The builder is where it was wanted; its uuid."""
    if operation == "delete":
        service.wait_gone(uuid)
        wait_for_nothing(service)
        return uuid
    if not uuid:  # the service died before it could answer the creation
        (created,) = service.call("GET", "/builders?name=crash-test").json()["data"]
        uuid = created["uuid"]
    data = service.wait_status(uuid, "stopped" if operation == "stop" else "running")
    assert service.visit(data).status_code == (503 if operation == "stop" else 200)
    return uuid


def wait_for_nothing(service: LiveService) -> None:
    """A deleted builder is in no list at once; its remains go within moments."""
    service.create("another")
    (another,) = service.call("GET", "/builders?name=another").json()["data"]
    service.call("DELETE", f"/builders/{another['uuid']}")
