"""conmon is killed under running apps: visitors get the app again, and its owner reads why it was restarted."""

from __future__ import annotations

import contextlib
import os
import signal
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
