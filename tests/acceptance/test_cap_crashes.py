"""Kill -9 of the service while it enforces a spending cap: a new one stops what it must, and bills to the moment."""

from __future__ import annotations

from contextlib import suppress

import httpx
import pytest
from tests.acceptance.conftest import ServiceOfModule
from tests.acceptance.live_service import LiveService
from tests.acceptance.on_engines import OnIncus, OwnEngine

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.engines]

REASON = "spending cap of 0.00 EUR reached"


@pytest.fixture
def capping(engine: OwnEngine | OnIncus, service_of_module: ServiceOfModule) -> LiveService:
    return service_of_module(engine)


# On fakes it is each of them in every run.
@pytest.mark.parametrize("fault", ["Cap.begun", "Cap.done", "Cap.recorded"])
def test_cap_is_enforced_after_a_kill(capping: LiveService, fault: str) -> None:
    admin = capping.make_token("acme", "--scope", "admin")
    uuid = capping.create("capped")["uuid"]
    capping.terminate()

    capping.start(fault)
    with suppress(httpx.TransportError):  # it may die before it answers
        capping.call("PUT", f"/builders/{uuid}/spending-cap", json={"monthly": 0}, token=admin)
    capping.wait_dead()
    assert capping.process is not None
    assert capping.process.returncode == -9, capping.log_tail()

    capping.start()
    stopped = capping.wait_status(uuid, "stopped")
    assert stopped["status_reason"] == REASON
    answer = capping.visit(stopped, headers={"Accept": "application/json"})
    assert answer.status_code == 503
    assert capping.builder(uuid)["status"] == "stopped", "a visit wakes nothing that a cap has stopped"
    refused = capping.call("POST", f"/builders/{uuid}/start")
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
    capping.call("DELETE", f"/builders/{uuid}")
