"""QA on real apps: the gate that answers the create call, and the report that follows on a copy."""

from __future__ import annotations

from typing import Any

import pytest
from tests.acceptance.live_service import TINY_APP, LiveService, body

pytestmark = [pytest.mark.root, pytest.mark.engines]

EXITS_AFTER_ONE = TINY_APP.replace(
    "self.wfile.write(body)", "self.wfile.write(body); print('out of ideas', flush=True); os._exit(3)"
)
ANSWERS_500 = TINY_APP.replace("self.send_response(200)", "print('no such table: guests'); self.send_response(500)")


def report(service: LiveService, uuid: str) -> dict[str, Any]:
    response = service.call("GET", f"/builders/{uuid}/qa")
    assert response.status_code == 200, response.text
    data: dict[str, Any] = response.json()["data"]
    return data


def failed(checks: list[dict[str, Any]]) -> dict[str, str]:
    return {check["name"]: check["message"] for check in checks if check["outcome"] == "failed"}


def test_healthy_app_passes_the_qa_gate(service: LiveService) -> None:
    data = service.create("qa-healthy")
    assert data["qa_passed"] is True
    gate = report(service, data["uuid"])["gate"]
    assert {check["name"]: check["outcome"] for check in gate} == dict.fromkeys(
        ("port", "answer", "alive", "memory"), "passed"
    )
    service.call("DELETE", f"/builders/{data['uuid']}")


@pytest.mark.parametrize(
    ("main", "check", "words"),
    [
        pytest.param(EXITS_AFTER_ONE, "alive", ["exited with code 3", "out of ideas"], marks=pytest.mark.slow),
        (ANSWERS_500, "answer", ["GET / was answered 500 Internal Server Error", "no such table: guests"]),
    ],
    ids=["exits-after-one-answer", "answers-500"],
)
def test_broken_app_fails_the_matching_check(service: LiveService, main: str, check: str, words: list[str]) -> None:
    data = service.create("qa-broken", main)
    assert data["qa_passed"] is False
    found = failed(report(service, data["uuid"])["gate"])
    assert set(found) == {check}
    for word in words:
        assert word in found[check]
    service.call("DELETE", f"/builders/{data['uuid']}")
    response = service.call("POST", "/builders", json=body("qa-required", main, require_qa=True))
    assert (response.status_code, response.json()["code"]) == (422, "qa_failed")
    for word in words:
        assert word in response.json()["message"]
    kept = service.wait_status(response.json()["data"]["uuid"], "failed")
    assert kept["qa_passed"] is False
    service.call("DELETE", f"/builders/{kept['uuid']}")


def test_version_that_fails_required_qa_is_rolled_back(service: LiveService) -> None:
    data = service.create("qa-redeployed", env={"GREETING": "old"})
    new = {"files": {"main.py": ANSWERS_500}, "require_qa": True}
    response = service.call("PUT", f"/builders/{data['uuid']}", json=new)
    assert (response.status_code, response.json()["code"]) == (422, "qa_failed"), response.text
    assert "no such table: guests" in response.json()["message"]
    service.wait_served(data)
    assert service.visit(data).text == "old"
    kept = service.builder(data["uuid"])
    assert (kept["status"], kept["version"], kept["qa_passed"]) == ("running", 1, True)
    service.call("DELETE", f"/builders/{data['uuid']}")


def test_each_version_has_its_own_qa_verdict(service: LiveService) -> None:
    data = service.create("qa-anew")
    changed = service.call("PUT", f"/builders/{data['uuid']}", json={"files": {"main.py": ANSWERS_500}})
    assert changed.status_code == 200, changed.text
    assert changed.json()["data"]["qa_passed"] is False
    old = service.call("GET", f"/builders/{data['uuid']}/qa?version=1").json()["data"]
    assert (old["version"], old["qa_passed"]) == (1, True)
    service.call("DELETE", f"/builders/{data['uuid']}")
