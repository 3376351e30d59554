"""QA over HTTP, and its report in formats that other tools read."""

from __future__ import annotations

import json
from collections import deque
from xml.etree import ElementTree as ET

import httpx
import pytest
from tests.contract.store.samples import NOW, SECOND
from tests.fakes.testers import FakeTesters
from tests.service import MINIMAL, Service

from builderd.core.ids import BuilderId
from builderd.qa.api import make_ctrf, make_junit
from builderd.qa.model import Check, CheckName, Outcome, QaReport, ReportStatus, Visit
from builderd.tokens.model import Scope

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


REPORT = QaReport(
    BuilderId("b"),
    1,
    ReportStatus.DONE,
    gate=(Check(CheckName.ANSWER, Outcome.FAILED, 'said "</failure>" & \0 \ud800 more', 0.25),),
    checks=(
        Check(CheckName.CRAWL, Outcome.PASSED, "3 pages."),
        Check(CheckName.LOG, Outcome.NOT_JUDGED, "away", findings=("one", "two")),
        Check(CheckName.IDLE_CPU, Outcome.WARNING, "busy"),
    ),
    gate_at=NOW,
    finished_at=NOW + SECOND,
)


def test_junit_is_xml_whatever_an_app_has_said() -> None:
    root = ET.fromstring(make_junit(REPORT))
    assert root.attrib == {"name": "builderd QA", "tests": "4", "failures": "1", "skipped": "1", "errors": "0"}
    assert [suite.attrib["name"] for suite in root] == ["gate", "report"]
    (case,) = root[0]
    assert (case.attrib["name"], case.attrib["time"]) == ("answer", "0.250")
    assert case[0].attrib["message"] == 'said "</failure>" & \ufffd \ufffd more'
    assert [[child.tag for child in case] for case in root[1]] == [["system-out"], ["skipped"], ["system-out"]]


def test_ctrf_counts_and_names_every_check() -> None:
    results = json.loads(make_ctrf(REPORT))["results"]
    summary = results["summary"]
    assert (summary["tests"], summary["passed"], summary["failed"], summary["skipped"]) == (4, 2, 1, 1)
    assert summary["stop"] - summary["start"] == 1000
    assert [(test["name"], test["status"], test["rawStatus"]) for test in results["tests"]] == [
        ("answer", "failed", "failed"),
        ("crawl", "passed", "passed"),
        ("log", "skipped", "not_judged"),
        ("idle_cpu", "passed", "warning"),
    ]
    assert results["tests"][2]["trace"] == "one\ntwo"


def test_a_version_that_was_not_judged_is_an_empty_report() -> None:
    empty = QaReport(BuilderId("b"), 1)
    assert ET.fromstring(make_junit(empty)).attrib["tests"] == "0"
    assert json.loads(make_ctrf(empty))["results"]["tests"] == []
