"""What both gates add to a create call, and whether the first visitor waits for them or for the report."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from tests.acceptance.live_service import LiveService, body, cold_service

#: What the QA gate waits for on purpose, in ms.
ALIVE = 500
GOAL = 150
MODES: dict[str, dict[str, bool]] = {
    "neither gate": {"skip_review": True, "skip_qa": True},
    "review alone": {"skip_qa": True},
    "QA gate alone": {"skip_review": True},
    "both gates": {},
}
NO_REPORT, OWN_REPORT, OTHERS_REPORT = "no reports", "its own report to come", "another app's report under way"
APP = """\
from flask import Flask

app = Flask(__name__)


@app.get("/")
def index():
    return "{}"


app.run(host="0.0.0.0", port=8000)
"""


class User:
    """Calls and visits over connections that are open already. Each app's code is new, so that nothing is cached."""

    def __init__(self, service: LiveService) -> None:
        self._service = service
        self._token = service.make_token("bench", "--scope", "write", "--scope", "skip-gates")
        self._client, self._visitor = httpx.Client(timeout=120), httpx.Client(timeout=120)

    def create(self, **fields: Any) -> dict[str, Any]:
        headers = {"Prefer": "respond-async"} if fields.pop("later", False) else {}
        files = {"main.py": APP.format(time.time_ns()), "requirements.txt": "flask"}
        request = body(f"gates-{time.time_ns():x}", files=files, **fields)
        return self._call("POST", "/builders", json=request, headers=headers)

    def delete(self, builder: dict[str, Any]) -> None:
        self._call("DELETE", f"/builders/{builder['uuid']}")

    def wait_for_report(self, builder: dict[str, Any], status: str) -> None:
        deadline = time.monotonic() + 240
        while self._call("GET", f"/builders/{builder['uuid']}/qa")["status"] != status:
            assert time.monotonic() < deadline, "no report"
            time.sleep(0.02)

    def first_visit(self) -> tuple[dict[str, Any], float]:
        """A builder, and seconds from its creation to the first 200 that a visitor got who asked all the time."""
        begun = time.perf_counter()
        builder = self.create(later=True)
        headers = {"Host": builder["preview_url"].split("/")[2]}
        while self._visitor.get(f"http://127.0.0.1:{self._service.preview_port}/", headers=headers).status_code != 200:
            time.sleep(0.005)
        return builder, time.perf_counter() - begun

    def wait_until_running(self, builder: dict[str, Any]) -> None:
        while self._call("GET", f"/builders/{builder['uuid']}")["status"] == "creating":
            time.sleep(0.02)

    def _call(self, method: str, path: str, headers: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
        sent = {"Authorization": f"Bearer {self._token}", **(headers or {})}
        response = self._client.request(method, f"{self._service.url}/api/v1{path}", headers=sent, **options)
        assert response.is_success, response.text
        data: dict[str, Any] = response.json()["data"]
        return data


def measure(rounds: int) -> dict[str, list[float]]:
    """Milliseconds by name."""
    samples: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        with (
            cold_service(Path(folder) / "quiet") as quiet,
            cold_service(Path(folder) / "reporting", BUILDERD_QA__REPORT="true") as reporting,
        ):
            users = User(quiet), User(reporting)
            for user in users:
                user.delete(user.create())  # the layer is made
            time.sleep(5)  # and byte-compiled in the background
            for _ in range(rounds):
                _creations(users[0], samples)
                _visits(*users, samples)
    return samples


def _creations(user: User, samples: dict[str, list[float]]) -> None:
    for mode, flags in MODES.items():
        begun = time.perf_counter()
        builder = user.create(**flags)
        samples[mode].append((time.perf_counter() - begun) * 1000)
        user.delete(builder)


def _visits(quiet: User, reporting: User, samples: dict[str, list[float]]) -> None:
    builder, seconds = quiet.first_visit()
    samples[NO_REPORT].append(seconds * 1000)
    quiet.wait_until_running(builder)
    quiet.delete(builder)
    builder, seconds = reporting.first_visit()
    samples[OWN_REPORT].append(seconds * 1000)
    reporting.wait_for_report(builder, "running")
    other, seconds = reporting.first_visit()
    samples[OTHERS_REPORT].append(seconds * 1000)
    reporting.wait_until_running(other)
    for one in (builder, other):
        reporting.delete(one)


def lines(samples: dict[str, list[float]]) -> Iterator[str]:
    """Two tables."""
    medians = {name: statistics.median(values) for name, values in samples.items()}
    base = medians["neither gate"]
    yield "| create → 201 of a Flask app, layer cached | ms | added | of which checks | goal | met |"
    yield "|---|---|---|---|---|---|"
    for mode in MODES:
        added = medians[mode] - base
        checks = added - (ALIVE if "QA" in mode or mode == "both gates" else 0)
        told = f"{added:.0f} | {checks:.0f}" if mode != "neither gate" else "| "
        verdict = f"≤ {GOAL} | {'yes' if checks <= GOAL else '**no**'}" if mode == "both gates" else "| "
        yield f"| {mode} | {medians[mode]:.0f} | {told} | {verdict} |"
    yield ""
    yield "| created → a visitor who asks all the time gets 200 | ms, median | most |"
    yield "|---|---|---|"
    for name in (NO_REPORT, OWN_REPORT, OTHERS_REPORT):
        yield f"| {name} | {medians[name]:.0f} | {max(samples[name]):.0f} |"
