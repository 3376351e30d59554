"""How long the first visitor of a sleeping app waits, through the preview.

    script/bench wake [--rounds N] [--starts N] [--only-built] [--json FILE]

Milliseconds, p50 and p99, over connections that are open already. A frozen app stands beside the same app that runs and
was left alone for as long; a stopped one stands beside its start on the bare host; one with a build step stands beside
the same app without one, woken in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import zram
from benchmarks.lifecycle import BARE, FLASK, PYTHON, Clock, host_flask, on_the_host
from tests.acceptance.idling import make_idle
from tests.acceptance.live_service import LiveService, cold_service

#: Seconds; short, so that there are many rounds.
FREEZE_AFTER = 0.25
#: The memory of what was frozen is moved out in the background: seconds for that.
MOVING_OUT = 1.0
#: From the specification of the sandbox: ms over the answer of an app that runs.
GOAL = 10.0
#: Times the wake of the same app without a build step.
BUILT_GOAL = 1.1
#: Writes what a framework's build leaves: 500 files of 20 kB in 20 folders.
BUILD = (
    "for folder in $(seq 20); do mkdir -p dist/$folder; "
    "for file in $(seq 25); do head -c 20000 /dev/urandom > dist/$folder/$file.js; done; done"
)
WITHOUT_BUILD, WITH_BUILD = "stopped, without a build step", "stopped, with one"
APPS: dict[str, tuple[str, dict[str, str]]] = {"bare": (BARE, {}), "flask": (FLASK, {"requirements.txt": "flask"})}


class Visitor:
    """One connection to the preview, and one to the API, kept open: who opens one has waited already."""

    def __init__(self, service: LiveService, data: dict[str, Any]) -> None:
        self._service = service
        self._uuid = data["uuid"]
        self._host = data["preview_url"].split("/")[2]
        self._preview = http.client.HTTPConnection("127.0.0.1", service.preview_port, timeout=60)
        self._api = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)

    def visit(self) -> None:
        assert self._ask(self._preview, "/", {"Host": self._host}) == b"ok"

    def call(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self._service.token}"}
        return json.loads(self._ask(self._api, f"/api/v1/builders/{self._uuid}{path}", headers))["data"]

    def until_frozen(self) -> None:
        self._until(lambda: self.call("/events?type=sandbox.*&per_page=1")[0]["type"] == "sandbox.frozen")

    def until_stopped(self) -> None:
        self._until(lambda: self.call("")["status"] == "stopped")

    def _until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.05)

    @staticmethod
    def _ask(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> bytes:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return content


def asleep(clock: Clock, visitor: Visitor, running: Visitor, kind: str, rounds: int, suffix: str) -> None:
    """A frozen app, and beside it one that ran on in the meantime."""
    for _ in range(rounds):
        visitor.until_frozen()
        time.sleep(MOVING_OUT if suffix else 0.1)
        with clock.time(f"{kind}: runs, after the same pause{suffix}"):
            running.visit()
        with clock.time(f"{kind}: frozen{suffix}"):
            visitor.visit()


def measure_app(service: LiveService, clock: Clock, kind: str, python: str, rounds: int, starts: int) -> None:
    """One that sleeps, and beside it one that never does."""
    main, files = APPS[kind]
    fields = {"files": {"main.py": main, **files}}
    data = service.create(f"{kind}-sleeps", main, auto_stop_interval=10, **fields)
    visitor = Visitor(service, data)
    running = Visitor(service, service.create(f"{kind}-runs", main, **fields))
    for _ in range(rounds):
        with clock.time(f"{kind}: runs"):
            running.visit()
    asleep(clock, visitor, running, kind, rounds, "")
    if zram.is_there():
        with zram.swapped_on():
            asleep(clock, visitor, running, kind, rounds, ", memory in zram")
    for _ in range(starts):
        on_the_host(clock, f"{kind}: start on the host", main, python)
        make_idle(service, data)
        visitor.until_stopped()
        with clock.time(f"{kind}: stopped"):
            visitor.visit()


def measure_built(service: LiveService, clock: Clock, starts: int) -> None:
    """Wake an app whose version was built, and the same app without a build step, in turns."""
    apps = {
        name: service.create(name.split(", ")[1].replace(" ", "-"), BARE, auto_stop_interval=10, **fields)
        for name, fields in ((WITHOUT_BUILD, {}), (WITH_BUILD, {"build": BUILD}))
    }
    visitors = {name: Visitor(service, data) for name, data in apps.items()}
    for number in range(starts):
        turn = (WITHOUT_BUILD, WITH_BUILD) if number % 2 else (WITH_BUILD, WITHOUT_BUILD)
        for name in turn:
            make_idle(service, apps[name])
            visitors[name].until_stopped()
        for name in turn:
            with clock.time(f"bare: {name}"):
                visitors[name].visit()


@contextlib.contextmanager
def quiet_service() -> Iterator[tuple[LiveService, str]]:
    """A service where things fall asleep at once, and a Python with Flask for the bare host."""
    with tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        flask = host_flask(Path(folder) / "venv")
        settings = {"BUILDERD_IDLE__FREEZE_AFTER": str(FREEZE_AFTER), "BUILDERD_RATES__REQUESTS": "0"}
        with cold_service(Path(folder) / "data", **settings) as service:
            service.create("warm-up")
            yield service, flask


def percentile(samples: list[float], percent: int) -> float:
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]


def table(samples: dict[str, list[float]]) -> str:
    lines = ["| what | p50 ms | p99 ms | rounds | |", "|---|---|---|---|---|"]
    for name, times in samples.items():
        p50, p99 = statistics.median(times), percentile(times, 99)
        note = ""
        if ": frozen" in name:
            beside = samples[name.replace("frozen", "runs, after the same pause")]
            over = p50 - statistics.median(beside)
            note = f"{over:+.1f} ms over one that runs; goal ≤ {GOAL:g}: {'met' if over <= GOAL else '**missed**'}"
        if name.endswith(WITH_BUILD):
            ratio = p50 / statistics.median(samples[name.replace(WITH_BUILD, WITHOUT_BUILD)])
            met = "met" if ratio <= BUILT_GOAL else "**missed**"
            note = f"{ratio:.2f} x the same app without one; goal ≤ {BUILT_GOAL:g}: {met}"
        if name.endswith(": stopped"):
            host = statistics.median(samples[name.replace("stopped", "start on the host")])
            note = f"{p50 / host:.2f} x its start on the host"
        lines.append(f"| {name} | {p50:.1f} | {p99:.1f} | {len(times)} | {note} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--starts", type=int, default=30)
    parser.add_argument("--only-built", action="store_true", help="only what a build step costs a wake")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clock = Clock()
    with quiet_service() as (service, flask):
        if not options.only_built:
            for kind, python in (("bare", PYTHON), ("flask", flask)):
                measure_app(service, clock, kind, python, options.rounds, options.starts)
        measure_built(service, clock, options.starts)
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")
    print(table(clock.samples))
    if options.json:
        options.json.write_text(json.dumps(clock.samples, indent=1))


if __name__ == "__main__":
    main()
