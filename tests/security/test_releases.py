"""A release runs the tenant's code while a version takes over: its time and bytes are bounded, and it runs once."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from tests.acceptance.live_service import PATIENCE, TINY_APP, LiveService, body, live_service
from tests.acceptance.scenarios import run

pytestmark = pytest.mark.root

#: Seconds that a release may take here.
TIMEOUT = 3


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    data_dir = tmp_path_factory.mktemp("releases") / "data"
    with live_service(data_dir, BUILDERD_LIMITS__RELEASE_TIMEOUT=str(TIMEOUT)) as running:
        yield running


@pytest.fixture(scope="module")
def app(service: LiveService) -> dict[str, Any]:
    """An app whose first version had a release."""
    files = {"main.py": TINY_APP, "Procfile": "release: echo one >> runs\nweb: python3 main.py\n"}
    answer = service.call("POST", "/builders", json=body("app", files=files, entrypoint=None))
    assert answer.status_code == 201, answer.text
    data: dict[str, Any] = answer.json()["data"]
    assert data["release"] == "echo one >> runs"
    return data


def change(service: LiveService, data: dict[str, Any], release: str) -> httpx.Response:
    return service.call("PATCH", f"/builders/{data['uuid']}", json={"release": release})


def assert_as_before(service: LiveService, data: dict[str, Any]) -> None:
    """The first version serves, on its own disk, on which its release ran once."""
    assert service.builder(data["uuid"])["version"] == data["version"]
    service.wait_served(data)
    assert run(service, data["uuid"], "ls; cat runs") == (0, "Procfile\nmain.py\nruns\none\n")


def processes_with(word: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_release_does_not_outlive_its_time(service: LiveService, app: dict[str, Any]) -> None:
    stubborn = "trap '' TERM INT HUP; (setsid sleep 98761 &); echo begun; while :; do sleep 98761; done"
    answer = change(service, app, stubborn)
    assert (answer.status_code, answer.json()["code"]) == (422, "release_failed"), answer.text
    within = re.search(r"did not end within (\d+) s", answer.json()["message"])
    assert within
    assert int(within[1]) in (TIMEOUT, 2 * TIMEOUT), "twice as long beside a busy machine"
    assert answer.json()["message"].endswith("Its last lines:\nbegun")
    assert processes_with("sleep 98761") == []
    assert_as_before(service, app)


def test_bytes_of_a_release_count_on_the_quota_of_its_disk(service: LiveService, app: dict[str, Any]) -> None:
    answer = change(service, app, "fallocate -l 4G /app/big")
    assert (answer.status_code, answer.json()["code"]) == (422, "release_failed"), answer.text
    assert "fallocate failed" in answer.json()["message"]
    lines = service.call("GET", f"/builders/{app['uuid']}/logs?stream=release").json()["data"]
    assert {line["stream"] for line in lines} == {"release"}
    assert_as_before(service, app)


def test_release_survives_the_service_and_runs_once(service: LiveService, app: dict[str, Any]) -> None:
    """The service is killed while it runs; another is killed before it can record a start that ended meanwhile."""
    for fault, command in [("", "echo two >> runs; sleep 1.5"), ("StartSandbox.done", "echo three >> runs")]:
        if fault:
            service.terminate()
            service.start(fault)
        before = service.builder(app["uuid"])["version"]
        asked = Thread(target=lambda command=command: ignore(service, app, command))
        asked.start()
        if fault:
            service.wait_dead()
        else:
            deadline = time.monotonic() + PATIENCE
            while not processes_with("sleep 1.5") and time.monotonic() < deadline:
                time.sleep(0.1)
            service.kill()
        asked.join()
        service.start()
        deadline = time.monotonic() + PATIENCE
        while service.builder(app["uuid"])["version"] == before and time.monotonic() < deadline:
            time.sleep(0.2)
        service.wait_served(app)
    assert run(service, app["uuid"], "cat runs") == (0, "one\ntwo\nthree\n")


def ignore(service: LiveService, data: dict[str, Any], command: str) -> None:
    """Send the change; its answer is lost with the service."""
    try:
        change(service, data, command)
    except httpx.TransportError:
        return
