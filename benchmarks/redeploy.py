"""How long visitors wait while a version takes over, beside a stop and start of the same app on the bare host.

    script/bench redeploy [--rounds N] [--json FILE]

Visitors come all along, one every few milliseconds. With builderd the longest of them all is the one that came just as
requests were held. On the host they find nobody from the stop on until the app listens again: those requests fail.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from benchmarks.lifecycle import BARE, FLASK, PYTHON, User, first_answer, host_flask
from tests.acceptance.live_service import LiveService, body, cold_service, free_port

VISITORS = 4
PAUSE = 0.002


@dataclass
class Visits:
    """``longest`` is in milliseconds."""

    count: int = 0
    failed: int = 0
    longest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, ms: float, *, ok: bool) -> None:
        with self.lock:
            self.count += 1
            self.failed += not ok
            self.longest = max(self.longest, ms)


@contextlib.contextmanager
def visited(service: LiveService, data: dict[str, Any]) -> Iterator[Visits]:
    """Visitors of the preview until the block ends."""
    visits, over, host = Visits(), threading.Event(), data["preview_url"].split("/")[2]

    def visit() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.preview_port, timeout=60)
        while not over.is_set():
            begun, ok = time.perf_counter(), False
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/", headers={"Host": host})
                answer = connection.getresponse()
                answer.read()
                ok = answer.status == 200
            visits.note((time.perf_counter() - begun) * 1000, ok=ok)
            time.sleep(PAUSE)
        connection.close()

    threads = [threading.Thread(target=visit) for _ in range(VISITORS)]
    for thread in threads:
        thread.start()
    try:
        yield visits
    finally:
        over.set()
        for thread in threads:
            thread.join()


@dataclass
class Samples:
    """In milliseconds, by name."""

    taken: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, ms: float) -> None:
        self.taken.setdefault(name, []).append(ms)


def on_the_host(samples: Samples, kind: str, main: str, python: str) -> None:
    """From the signal that stops the app until it answers again: as fast as a person could ever do it by hand."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "main.py").write_text(main)

        def start() -> subprocess.Popen[bytes]:
            quiet = subprocess.DEVNULL
            environment = {"PORT": str(port), "PATH": os.environ["PATH"]}
            return subprocess.Popen([python, "main.py"], cwd=folder, env=environment, stdout=quiet, stderr=quiet)

        process = start()
        first_answer(port)
        begun = time.perf_counter()
        process.terminate()
        process.wait()
        process = start()
        first_answer(port)
        samples.add(f"{kind}: stopped and started on the host, away for", (time.perf_counter() - begun) * 1000)
        process.kill()
        process.wait()


class Redeployed:
    """A builder that gets a new version each round."""

    def __init__(self, service: LiveService, user: User, samples: Samples, kind: str, main: str, files: dict[str, str]):
        self._service, self._user, self._samples, self._kind = service, user, samples, kind
        self._files = {"main.py": main, **files}
        request = {**body(f"bench-{kind}", main), "files": self._files}
        self._data = user.call("POST", "/builders", 201, json=request)
        self._number = 0
        self.visits = 0
        self.failed = 0

    def new_code(self) -> None:
        self._number += 1
        files = {**self._files, "number.txt": str(self._number)}
        self._change("a redeploy", "PUT", "", {"files": files})

    def new_settings(self) -> None:
        self._number += 1
        self._change("a settings change", "PATCH", "", {"env": {"NUMBER": str(self._number)}})

    def rollback(self) -> None:
        old = self._user.call("GET", f"/builders/{self._data['uuid']}/versions", 200)
        self._change("a rollback", "POST", "/rollback", {"version": old[1]["version"]})  # type: ignore[index]

    def _change(self, what: str, method: str, path: str, change: dict[str, Any]) -> None:
        with visited(self._service, self._data) as visits:
            begun = time.perf_counter()
            self._user.call(method, f"/builders/{self._data['uuid']}{path}", 200, json=change)
            self._samples.add(f"{self._kind}: {what}, call to answer", (time.perf_counter() - begun) * 1000)
        self._samples.add(f"{self._kind}: {what}, visitors held", visits.longest)
        self.visits += visits.count
        self.failed += visits.failed


def measure(rounds: int) -> dict[str, Any]:
    samples = Samples()
    with tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        flask = host_flask(Path(folder) / "venv")
        with cold_service(Path(folder) / "data") as service, httpx.Client(timeout=60) as client:
            user = User(service, client)
            apps = [
                (Redeployed(service, user, samples, "bare", BARE, {}), "bare", BARE, PYTHON),
                (
                    Redeployed(service, user, samples, "flask", FLASK, {"requirements.txt": "flask"}),
                    "flask",
                    FLASK,
                    flask,
                ),
            ]
            for _ in range(rounds):
                for builder, kind, main, python in apps:
                    on_the_host(samples, kind, main, python)
                    builder.new_code()
                    builder.new_settings()
                    builder.rollback()
    visits, failed = (sum(getattr(app[0], name) for app in apps) for name in ("visits", "failed"))
    shown = {name: _figures(taken) for name, taken in sorted(samples.taken.items())}
    return {"rounds": rounds, "visits": visits, "failed": failed, "load": os.getloadavg()[0], "ms": shown}


def _figures(taken: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(taken), 1), "worst": round(max(taken), 1)}


def table(result: dict[str, Any]) -> str:
    lines = ["| what | median, ms | worst, ms | x bare host |", "|---|---|---|---|"]
    for name, figures in result["ms"].items():
        host = result["ms"][f"{name.split(':')[0]}: stopped and started on the host, away for"]
        ratio = f"{figures['median'] / host['median']:.2f}" if "held" in name or "away" in name else ""
        lines.append(f"| {name} | {figures['median']:.1f} | {figures['worst']:.1f} | {ratio} |")
    lines.append(f"\n{result['visits']} visits meanwhile, {result['failed']} failed; load {result['load']:.1f}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options.rounds)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
