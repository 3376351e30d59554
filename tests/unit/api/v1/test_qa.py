"""QA over HTTP: what is said of a gate, also of one that was left out."""

from __future__ import annotations

from collections import deque

import httpx
import pytest
from tests.fakes.testers import FakeTesters
from tests.service import MINIMAL, Service

from builderd.domain.qa import Visit
from builderd.domain.tokens import Scope

BUILDERS = "/api/v1/builders"


@pytest.fixture
async def client(service: Service) -> httpx.AsyncClient:
    return service.client(await service.token("acme", Scope.WRITE, Scope.SKIP_GATES))


async def test_a_gate_that_was_left_out_is_judged_when_asked_for_and_its_verdict_stays_open(
    client: httpx.AsyncClient,
) -> None:
    url = (await client.post(BUILDERS, json={**MINIMAL, "skip_qa": True})).headers["location"]
    before = (await client.get(f"{url}/qa")).json()
    assert (before["data"]["qa_passed"], before["data"]["gate"], before["data"]["skipped"]) == (None, [], True)
    assert before["message"].startswith("The gate was left out for version 1; ")
    judged = await client.post(f"{url}/qa")
    assert judged.status_code == 202, judged.text
    after = (await client.get(f"{url}/qa")).json()
    assert after["data"]["qa_passed"] is None
    assert {check["outcome"] for check in after["data"]["gate"]} == {"passed"}
    assert after["message"].startswith("The gate was left out for version 1, which passed it when it was judged later")
    assert (await client.get(url)).json()["data"]["qa_passed"] is None


async def test_qa_again_runs_the_gate(client: httpx.AsyncClient, service: Service) -> None:
    url = (await client.post(BUILDERS, json=MINIMAL)).headers["location"]
    assert (await client.get(f"{url}/qa")).json()["message"].startswith("Version 1 passed; ")
    testers = service.application.testers
    assert isinstance(testers, FakeTesters)
    testers.visits = deque([Visit(500, 0.02)])
    await client.post(f"{url}/qa")
    answer = (await client.get(f"{url}/qa")).json()
    assert (answer["data"]["qa_passed"], answer["message"].split(";")[0]) == (False, "Version 1 failed")
