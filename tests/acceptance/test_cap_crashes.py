"""Kill -9 of the service while it enforces a spending cap: a new one stops what it must, and bills to the moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from tests.acceptance.live_service import LiveService

pytestmark = pytest.mark.root

REASON = "spending cap of 0.00 EUR reached"


@pytest.fixture(scope="module")
def capping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    service = LiveService(tmp_path_factory.mktemp("cap") / "data")
    service.start()
    yield service
    service.down()


# The soak kills it before and after that too; on fakes it is each of them every time.
SELDOM = [pytest.param(fault, marks=pytest.mark.slow) for fault in ("Cap.begun", "Cap.recorded")]


@pytest.mark.parametrize("fault", ["Cap.done", *SELDOM])
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
