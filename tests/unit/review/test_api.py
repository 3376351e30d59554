"""The review over HTTP: what a refused deployment tells, the report, SARIF, and accepting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from tests.service import MINIMAL, Service

from builderd.tokens.model import Scope

BUILDERS = "/api/v1/builders"
RISKY = {**MINIMAL, "files": {"main.py": "x = 1\ntake_risk()\n"}}
EVIL = {**MINIMAL, "files": {"main.py": "open_shell()\n"}}


@pytest.fixture
def client(service: Service) -> httpx.AsyncClient:
    service.scanner.dislikes = {"open_shell": "MAL-reverse-shell", "take_risk": "RSK-metadata"}
    return service.client(service.write)


async def refused(client: httpx.AsyncClient, body: dict[str, Any] = RISKY) -> tuple[str, dict[str, Any]]:
    """The path of a builder whose review failed, and its first finding."""
    response = await client.post(BUILDERS, json=body)
    assert (response.status_code, response.json()["code"]) == (422, "review_failed")
    data = response.json()["data"]
    return f"{BUILDERS}/{data['uuid']}", data["review"]["findings"][0]


def accepting(finding: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"fingerprint": finding["fingerprint"], "reason": "it is meant", **more}


async def test_failed_review_names_file_line_rule_and_advice(client: httpx.AsyncClient) -> None:
    response = await client.post(BUILDERS, json=RISKY)
    body = response.json()
    assert (response.status_code, body["code"]) == (422, "review_failed")
    assert "main.py:2" in body["message"]
    finding = body["data"]["review"]["findings"][0]
    told = {name: finding[name] for name in ("path", "line", "rule", "severity", "text", "advice", "acceptable")}
    assert told == {
        "path": "main.py",
        "line": 2,
        "rule": "RSK-metadata",
        "severity": "hold",
        "text": "take_risk()",
        "advice": "Mend it",
        "acceptable": True,
    }
    builder = (await client.get(f"{BUILDERS}/{body['data']['uuid']}")).json()["data"]
    assert (builder["status"], builder["review_passed"]) == ("failed", False)


async def test_stage_events_include_the_review(client: httpx.AsyncClient) -> None:
    response = await client.post(BUILDERS, json=EVIL, headers={"Accept": "text/event-stream"})
    assert "event: review\n" in response.text
    assert "event: failed\n" in response.text
    assert "MAL-reverse-shell" in response.text


async def test_a_hold_is_accepted_with_a_reason_and_then_starts(client: httpx.AsyncClient, service: Service) -> None:
    url, finding = await refused(client)
    response = await client.post(f"{url}/review/accept", json=accepting(finding))
    assert response.status_code == 200, response.text
    accepted = response.json()["data"]
    assert accepted["passed"]
    assert accepted["findings"][0]["accepted"]["accepted_by"] == "token test"
    started = (await client.post(f"{url}/start")).json()["data"]
    assert (started["status"], started["review_passed"]) == ("running", True)
    assert len(service.scanner.scanned) == 1


async def test_a_block_needs_an_admin_and_a_date(client: httpx.AsyncClient, service: Service) -> None:
    url, finding = await refused(client, EVIL)
    admin = service.client(await service.token("acme", Scope.ADMIN))
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    path = f"{url}/review/accept"
    for caller, body, status, code in (
        (client, accepting(finding, expires=later), 403, "forbidden"),
        (admin, accepting(finding), 422, "validation_error"),
        (admin, accepting(finding, expires="2020-01-01T00:00:00Z"), 422, "validation_error"),
        (admin, accepting({"fingerprint": "0" * 32}), 404, "not_found"),
    ):
        response = await caller.post(path, json=body)
        assert (response.status_code, response.json()["code"]) == (status, code)
    assert (await client.post(f"{url}/start")).json()["code"] == "review_failed"
    assert (await admin.post(path, json=accepting(finding, expires=later))).json()["data"]["passed"]
    assert (await client.post(f"{url}/start")).json()["data"]["status"] == "running"


async def test_a_redeploy_that_blocks_is_refused_and_the_old_version_serves(client: httpx.AsyncClient) -> None:
    url = (await client.post(BUILDERS, json=MINIMAL)).headers["location"]
    response = await client.put(url, json={"files": EVIL["files"]})
    body = response.json()
    assert (response.status_code, body["code"], body["data"]["version"]) == (422, "review_failed", 2)
    assert body["data"]["review"]["findings"][0]["rule"] == "MAL-reverse-shell"
    builder = (await client.get(url)).json()["data"]
    assert (builder["status"], builder["version"], builder["review_passed"]) == ("running", 1, True)
    versions = (await client.get(f"{url}/versions")).json()["data"]
    assert [(one["version"], one["status"], one["review_passed"]) for one in versions] == [
        (2, "failed", False),
        (1, "deployed", True),
    ]
    assert "main.py:1" in versions[0]["status_reason"]
    assert (await client.get(f"{url}/review")).json()["data"]["passed"]
    assert not (await client.get(f"{url}/review?version=2")).json()["data"]["passed"]


async def test_report_is_available_as_sarif(client: httpx.AsyncClient) -> None:
    url, finding = await refused(client)
    response = await client.get(f"{url}/review?format=sarif")
    assert response.headers["content-type"] == "application/sarif+json"
    (run,) = response.json()["runs"]
    assert run["results"][0]["partialFingerprints"] == {"builderd/v1": finding["fingerprint"]}
    assert run["results"][0]["locations"][0]["physicalLocation"]["region"]["startLine"] == 2


async def test_skipping_needs_a_scope_and_is_on_the_record(client: httpx.AsyncClient, service: Service) -> None:
    body = {**EVIL, "skip_review": True}
    assert (await client.post(BUILDERS, json=body)).json()["code"] == "forbidden"
    trusted = service.client(await service.token("acme", Scope.WRITE, Scope.SKIP_GATES))
    created = (await trusted.post(BUILDERS, json=body)).json()["data"]
    assert (created["status"], created["review_passed"]) == ("running", None)
    url = f"{BUILDERS}/{created['uuid']}"
    assert (await client.get(f"{url}/review")).status_code == 404
    events = (await client.get(f"{url}/events")).json()["data"]
    assert [event["details"] for event in events if event["type"] == "gate.skipped"] == [
        {"gate": "review", "version": 1}
    ]
    assert service.scanner.scanned == []
