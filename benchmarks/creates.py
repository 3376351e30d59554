"""CPU time of a create, by process, and how many apps are created in a second.

    script/bench creates [--apps N] [--batch N] [--at-once N] [--new-code] [--json FILE]

The bare app of ``script/bench lifecycle``, without reports, in batches that are deleted before the next one. Not
counted are deletions, and what the service and as many running apps use without a create. Beside it stands the same
app as a process of this host: what is left if nothing is added. CPU time says more than the clock where the machine has
other work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from benchmarks.cpu import counted_launcher, of_machine
from benchmarks.lifecycle import BARE, PYTHON, first_answer
from tests.acceptance.live_service import LiveService, body, free_port, running

RESOURCES = {"cpu": 1, "memory": 0.125, "disk": 1}
#: The least creates in a second, on two cores.
GOAL = 8.0
#: For the background jobs that follow a create (they look 0.1 s after it).
SETTLE_SECONDS = 1.5
#: The longest span for what the service and the batch's apps use without a create; else as long as they took.
MOST_IDLE_SECONDS = 20.0
HOST_ROUNDS = 10
#: Milliseconds of CPU so far, by part and process.
_Cpu = defaultdict[tuple[str, int], float]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as place:
        folder = Path(place)
        folder.chmod(0o755)
        settings = {"BUILDERD_RATES__REQUESTS": "0"}
        with running(LiveService(folder / "data", settings, cold=True)) as service:
            creates = _Creates(service, options)
            creates.run(options.batch)  # the first ones warm up, and begin the launcher
            creates.run_counted(options.apps)
    cpu = {name: round(took / options.apps, 1) for name, took in creates.cpu.items()}
    return {
        "apps": options.apps,
        "at_once": options.at_once,
        "load": os.getloadavg()[0],
        "cpu_ms": cpu,
        "host_cpu_ms": round(statistics.median(on_the_host(folder="/var/tmp") for _ in range(HOST_ROUNDS)), 1),
        "seconds": round(creates.seconds, 2),
        "p50_ms": round(statistics.median(creates.took), 1),
    }


class _Creates:
    """Creates apps of one service, batch by batch, and counts the CPU time and the clock of their creates alone."""

    def __init__(self, service: LiveService, options: argparse.Namespace) -> None:
        assert service.process
        self._group: Path | None = None
        self._service = service
        self._pid = service.process.pid
        self._options = options
        self._number = 0
        self.forget()

    def run_counted(self, apps: int) -> None:
        """Create so many apps; only they are counted."""
        with counted_launcher(self._pid) as self._group:
            self.forget()
            self.run(apps)

    def forget(self) -> None:
        self.cpu: defaultdict[str, float] = defaultdict(float)
        self.took: list[float] = []
        self.seconds = 0.0

    def run(self, apps: int) -> None:
        for start in range(0, apps, self._options.batch):
            self._batch(min(self._options.batch, apps - start))

    def _batch(self, apps: int) -> None:
        headers = {"Authorization": f"Bearer {self._service.token}"}
        with (
            httpx.Client(timeout=120, headers=headers) as client,
            ThreadPoolExecutor(self._options.at_once) as callers,
        ):
            time.sleep(SETTLE_SECONDS)
            before, begun = self._read(), time.perf_counter()
            uuids = list(callers.map(lambda _: self._create(client), range(apps)))
            self.seconds += time.perf_counter() - begun
            time.sleep(SETTLE_SECONDS)
            after, ended = self._read(), time.perf_counter()
            time.sleep(min(ended - begun, MOST_IDLE_SECONDS))
            idle = time.perf_counter() - ended
            self._add(before, after, self._read(), (ended - begun) / idle)
            for uuid in uuids:
                assert client.delete(f"{self._service.url}/api/v1/builders/{uuid}").status_code == 200

    def _read(self) -> _Cpu:
        return of_machine(self._pid, self._service.data_dir, self._group)

    def _add(self, before: _Cpu, after: _Cpu, idle: _Cpu, spans: float) -> None:
        """Add what creates took; ``spans`` times an idle one with the batch's apps is taken off."""
        for part, took in after.items():
            # A process that ended meanwhile used nothing more.
            self.cpu[part[0]] += took - before[part] - spans * (idle.get(part, took) - took)

    def _create(self, client: httpx.Client) -> str:
        self._number += 1
        code = f"{BARE}# {self._number}\n" if self._options.new_code else BARE
        request = {**body(f"bench-{self._number}", code), "resources": RESOURCES}
        begun = time.perf_counter()
        response = client.post(f"{self._service.url}/api/v1/builders", json=request)
        self.took.append((time.perf_counter() - begun) * 1000)
        assert response.status_code == 201, response.text
        uuid: str = response.json()["data"]["uuid"]
        return uuid


def on_the_host(folder: str) -> float:
    """Return the CPU milliseconds of the app as a plain process, from its start to its first answer."""
    port = free_port()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        Path(place, "main.py").write_text(BARE)
        process = subprocess.Popen([PYTHON, "main.py"], cwd=place, env={"PORT": str(port), "PATH": os.environ["PATH"]})
        first_answer(port)
        process.kill()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return (used.ru_utime + used.ru_stime) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--apps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=20, help="apps that run at the same time at most")
    parser.add_argument("--at-once", type=int, default=4, help="creates at the same time")
    parser.add_argument("--new-code", action="store_true", help="other code for each app, so that each is reviewed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options)
    rate = result["apps"] / result["seconds"]
    print(
        f"{result['apps']} creates, {result['at_once']} at once, load {result['load']:.1f}: "
        f"{rate:.1f} apps/s (goal ≥ {GOAL:g}: {'met' if rate >= GOAL else '**not met**'}), "
        f"p50 {result['p50_ms']} ms\n\n"
        "| CPU of one create | ms |\n|---|---|"
    )
    for name, ms in sorted(result["cpu_ms"].items(), key=lambda item: -item[1]):
        print(f"| {name} | {ms} |")
    print(f"| all | {sum(result['cpu_ms'].values()):.1f} |")
    print(f"| the same app as a process of the host | {result['host_cpu_ms']} |")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
