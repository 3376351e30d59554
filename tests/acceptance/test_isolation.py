"""Strong isolation: the same life under gVisor, whose kernel answers the app's system calls instead of the host's."""

from __future__ import annotations

import os

import pytest
from tests.acceptance import scenarios
from tests.acceptance.live_service import LiveService

pytestmark = pytest.mark.root

STRONG = {"isolation": "strong"}

FLASK_APP = """\
import os, urllib.request
from flask import Flask

app = Flask(__name__)

@app.get("/")
def own_record():
    url = f"{os.environ['BUILDERD_URL']}/api/v1/builders/{os.environ['BUILDER_UUID']}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {os.environ['SERVICE_TOKEN']}"})
    return urllib.request.urlopen(request, timeout=10).read(), {"Content-Type": "application/json"}

app.run(host="0.0.0.0", port=int(os.environ["PORT"]))
"""


def test_builder_lifecycle(service: LiveService) -> None:
    scenarios.whole_life(service, **STRONG)


@pytest.mark.slow
def test_job_exit_code_is_recorded(service: LiveService) -> None:
    scenarios.job(service, 3, "failed", **STRONG)


def test_app_with_dependencies_reaches_the_sandbox_api(service: LiveService) -> None:
    files = {"main.py": FLASK_APP, "requirements.txt": "flask"}
    with service.deployed("strong-flask", files, "python3 main.py", **STRONG) as data:
        own = service.visit(data).json()["data"]
        assert (own["uuid"], own["isolation"]) == (data["uuid"], "strong")


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["other-port", "memory"])
def test_app_that_does_not_start_reports_the_reason(failure: str, quick_to_give_up: LiveService) -> None:
    scenarios.failure_to_start(quick_to_give_up, failure, **STRONG)


@pytest.mark.slow
def test_running_apps_are_adopted_after_a_service_crash(service: LiveService) -> None:
    scenarios.absence_of_the_service(service, LiveService.kill, **STRONG)


def test_app_under_gvisor_sees_another_kernel(service: LiveService) -> None:
    data = service.create("kernel", **STRONG)
    assert data["isolation"] == "strong"
    _, release = scenarios.run(service, data["uuid"], "uname -r")
    assert release.strip() != os.uname().release
    code, said = scenarios.run(service, data["uuid"], "dmesg")
    assert (code, "gVisor" in said) == (0, True)
    service.call("DELETE", f"/builders/{data['uuid']}")
