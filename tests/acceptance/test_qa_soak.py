"""QA on twenty-two sound apps of as many kinds and on twelve broken ones, twice: every verdict is right, both times."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.acceptance.live_service import LiveService, live_service
from tests.acceptance.qa_apps import BROKEN, SOUND, App, Twin

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: A report may have to wait for an app of 40 seconds to start twice.
PATIENCE = 480.0


@pytest.fixture(scope="module")
def reporting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("reporting") / "data", BUILDERD_QA__REPORT="true") as service:
        yield service


def create(service: LiveService, app: App, **more: Any) -> tuple[int, dict[str, Any], float]:
    """The status, the answer, and how many seconds it took."""
    begun = time.monotonic()
    response = service.call("POST", "/builders", json={**app.body, **more})
    return response.status_code, response.json(), time.monotonic() - begun


def reported(service: LiveService, uuid: str) -> dict[str, Any]:
    """Return the builder's QA once its report is finished."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        qa: dict[str, Any] = service.call("GET", f"/builders/{uuid}/qa").json()["data"]
        if qa["status"] in ("done", "dropped"):
            return qa
        time.sleep(0.2)
    raise AssertionError(f"no report: {qa}")


def table(qa: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["outcome"] for check in [*qa["gate"], *qa["checks"]]}


def tell(name: str, seconds: float, qa: dict[str, Any]) -> None:
    """A line of the table that ``script/soak`` shows with ``-s``."""
    odd = {check: outcome for check, outcome in table(qa).items() if outcome != "passed"}
    report = sum(check["seconds"] for check in qa["checks"])
    sys.stdout.write(
        f"{name:24} {seconds:6.2f} s  qa_passed={qa['qa_passed']!s:5} checks {report:5.1f} s  {odd or 'all passed'}\n"
    )
    for check in [*qa["gate"], *qa["checks"]]:
        if check["outcome"] == "failed":
            said = check["message"].splitlines()[0][:160]
            sys.stdout.write(f"    {check['name']}: {said} {check['findings'][:2]}\n")


@pytest.mark.parametrize("app", SOUND, ids=[app.name for app in SOUND])
def test_sound_app_passes_qa_twice(reporting: LiveService, app: App) -> None:
    seen = []
    for _ in range(2):
        status, answer, seconds = create(reporting, app)
        assert status == 201, answer
        qa = reported(reporting, answer["data"]["uuid"])
        tell(app.name, seconds, qa)
        reporting.call("DELETE", f"/builders/{answer['data']['uuid']}")
        assert (qa["qa_passed"], qa["status"], len(qa["screenshots"])) == (True, "done", 2)
        seen.append(table(qa))
    assert {check for check, outcome in seen[0].items() if outcome == "failed"} == app.fails
    assert seen[0] == seen[1]


@pytest.mark.parametrize("twin", BROKEN, ids=[twin.app.name for twin in BROKEN])
def test_broken_app_fails_the_matching_check_twice(reporting: LiveService, twin: Twin) -> None:
    for _ in range(2):
        status, answer, seconds = create(reporting, twin.app, require_qa=True)
        if twin.code is not None:
            assert (status, answer["code"]) == (422, twin.code), answer
        else:
            assert status == 201, answer
        uuid = answer["data"]["uuid"]
        qa = reporting.call("GET", f"/builders/{uuid}/qa").json()["data"] if twin.code else reported(reporting, uuid)
        tell(twin.app.name, seconds, qa)
        reporting.call("DELETE", f"/builders/{uuid}")
        assert qa["qa_passed"] is (twin.code is None)
        (check,) = [one for one in [*qa["gate"], *qa["checks"]] if one["name"] == twin.check]
        assert check["outcome"] == twin.outcome
        assert twin.word in check["message"] + str(check["findings"])
