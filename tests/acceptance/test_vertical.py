"""The main job, as a user does it: code in, live URL out, and everything after that."""

from __future__ import annotations

import time

import pytest
from tests.acceptance import scenarios
from tests.acceptance.live_service import TINY_APP, LiveService

pytestmark = [pytest.mark.root, pytest.mark.engines]

FLASK_APP = """\
import os
from flask import Flask

app = Flask(__name__)

@app.get("/")
def index():
    return {"flag": os.environ["MY_FLAG"], "builder": os.environ["BUILDER_NAME"]}

app.run(host="0.0.0.0", port=int(os.environ["PORT"]))
"""


def test_documented_create_call_works(service: LiveService) -> None:
    request = {
        "name": "my-api",
        "entrypoint": "python3 main.py",
        "files": {"main.py": FLASK_APP, "requirements.txt": "flask"},
        "port": 8000,
        "env": {"MY_FLAG": "1"},
        "resources": {"cpu": 1, "memory": 1, "disk": 3},
        "job_type": "always_on",
        "backup_interval_hours": 0,
    }
    response = service.call("POST", "/builders", json=request)
    assert response.status_code == 201, response.text
    data = response.json()["data"]
    assert data["status"] == "running"
    assert data["cost"]["hourly_rate"] == 0.1965
    assert data["review_passed"] is True
    assert data["qa_passed"] is True
    assert service.visit(data).json() == {"flag": "1", "builder": "my-api"}
    service.call("DELETE", f"/builders/{data['uuid']}")


def test_builder_lifecycle(service: LiveService) -> None:
    scenarios.whole_life(service)


@pytest.mark.parametrize(("code", "status"), [(3, "failed"), pytest.param(0, "completed", marks=pytest.mark.slow)])
def test_finished_job_keeps_its_logs_and_files(service: LiveService, code: int, status: str) -> None:
    scenarios.job(service, code, status)


@pytest.mark.parametrize(
    "failure", [*(one for one in scenarios.FAILURES if one != "silent"), pytest.param("silent", marks=pytest.mark.slow)]
)
def test_app_that_does_not_start_reports_the_reason(failure: str, quick_to_give_up: LiveService) -> None:
    scenarios.failure_to_start(quick_to_give_up, failure)


def test_crash_loop_ends_in_failed(service: LiveService) -> None:
    # It ends when a visitor asks for that: one that ends by itself may do so five times before the call is answered.
    main = TINY_APP.replace("do_GET(self):", 'do_GET(self):\n        self.path != "/end" or os._exit(0)')
    data = service.create("crasher", main)
    deadline = time.monotonic() + 120
    while service.builder(data["uuid"])["status"] == "running" and time.monotonic() < deadline:
        service.visit(data, "end")
        time.sleep(0.1)
    given_up = service.builder(data["uuid"])
    assert given_up["status"] == "failed"
    assert "5 times within 10 minutes" in given_up["status_reason"]
    assert service.visit(data).status_code == 503
    service.call("DELETE", f"/builders/{data['uuid']}")
