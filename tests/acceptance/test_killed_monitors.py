"""conmon is killed under running apps: visitors get the app again, and its owner reads why it was restarted."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.live_service import PATIENCE, TINY_APP, LiveService

pytestmark = pytest.mark.root

RESTARTED = "its log monitor (conmon) was killed; restarted"
JOB = "import time; print('begun', flush=True); time.sleep(1000)"


def monitors(service: LiveService) -> dict[int, str]:
    """Process ids of the service's conmon processes, with the sandbox of each."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if words[0].endswith("/conmon") and any(word.startswith(str(service.data_dir)) for word in words):
                found[int(folder.name)] = words[words.index("--cid") + 1]
    return found


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def app(service: LiveService, name: str, **fields: Any) -> Iterator[tuple[dict[str, Any], set[int]]]:
    """A builder that is up, and its monitor."""
    before = monitors(service).keys()
    data = service.create(name, TINY_APP, **fields)
    try:
        yield data, set(monitors(service).keys() - before)
    finally:
        service.call("DELETE", f"/builders/{data['uuid']}")


def events_of(service: LiveService, data: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    answer = service.call("GET", f"/builders/{data['uuid']}/events?type={kind}").json()
    return list(answer["data"])


def until_restarted(service: LiveService, data: dict[str, Any], times: int = 1) -> None:
    deadline = time.monotonic() + PATIENCE
    while len(events_of(service, data, "builder.restarting")) < times:
        assert time.monotonic() < deadline, service.log_tail()
        time.sleep(0.05)
    service.wait_served(data)


def test_app_whose_conmon_is_killed_is_restarted_with_a_reason(service: LiveService) -> None:
    with app(service, "monitored") as (data, monitor):
        kill(*monitor)
        until_restarted(service, data)
        after = service.builder(data["uuid"])
        assert (after["status"], after["status_reason"]) == ("running", RESTARTED)
        (ended,) = events_of(service, data, "sandbox.ended")
        assert (ended["details"]["cause"], ended["details"]["exit_code"]) == ("monitor_lost", None)


def test_job_whose_conmon_is_killed_fails_with_unknown_exit_code(service: LiveService) -> None:
    before = monitors(service).keys()
    job = service.create("monitored-job", JOB, job_type="one_time")
    kill(*(monitors(service).keys() - before))
    ended = service.wait_status(job["uuid"], "failed")
    assert ended["status_reason"] == "ended, exit code unknown: its log monitor (conmon) was killed"
    assert ended["exit_code"] is None
    service.call("DELETE", f"/builders/{job['uuid']}")


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["standard", "strong"])
def test_conmon_killed_while_the_service_is_down_is_detected_at_start(service: LiveService, isolation: str) -> None:
    with app(service, f"away-{isolation}", isolation=isolation) as (data, monitor):
        service.kill()
        kill(*monitor)
        service.start()
        until_restarted(service, data)
        assert service.builder(data["uuid"])["status_reason"] == RESTARTED


@pytest.mark.slow
def test_redeploy_succeeds_although_each_first_conmon_is_killed(service: LiveService) -> None:
    """That of the trial, of the version that serves, and of the one that takes over."""
    with app(service, "redeployed") as (data, monitor), killing(service) as killed:
        kill(*monitor)
        files = {"main.py": TINY_APP.replace("hello", "hello again")}
        change = {"entrypoint": "python3 main.py", "port": 8000, "files": files, "require_qa": True}
        answer = service.call("PUT", f"/builders/{data['uuid']}", json=change)
        assert answer.status_code == 200, answer.text
        service.wait_served(data)
        assert service.visit(data).text == "hello again"
        assert len(killed) >= 2


@pytest.mark.slow
def test_backup_whose_conmon_is_killed_fails_and_is_retried(
    service: LiveService,
) -> None:
    with app(service, "backed-up") as (data, _):
        with killing(service, most=100):
            answer = service.call("POST", f"/builders/{data['uuid']}/backups", json={})
        if answer.status_code != 201:
            assert answer.status_code == 503, answer.text
            assert "conmon" in answer.text
        answer = service.call("POST", f"/builders/{data['uuid']}/backups", json={})
        assert answer.status_code == 201, answer.text


@pytest.mark.slow
def test_app_survives_repeated_kills_of_service_and_conmon(service: LiveService) -> None:
    with app(service, "crashes") as (data, first):
        monitor = first
        for times in range(1, 4):
            kill(*monitor)
            time.sleep(0.02 * times)
            service.kill()
            before = monitors(service).keys()
            service.start()
            until_restarted(service, data, times)
            monitor = set(monitors(service).keys() - before)
            assert monitor
        assert service.builder(data["uuid"])["status"] == "running"


@contextlib.contextmanager
def killing(service: LiveService, most: int = 3) -> Iterator[set[str]]:
    """Kill the monitor of each new sandbox a moment after it was made, of so many sandboxes at most."""
    known, killed, over = set(monitors(service).values()), set[str](), threading.Event()

    def kill_new() -> None:
        while not over.is_set() and len(killed) < most:
            for pid, sandbox in monitors(service).items():
                if sandbox not in known:
                    time.sleep(0.2)
                    kill(pid)
                    known.add(sandbox)
                    killed.add(sandbox)
            time.sleep(0.01)

    thread = threading.Thread(target=kill_new)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()
