"""How long a command beside an app takes, next to ``podman exec`` of the same command, in one run and in turns.

    script/bench exec [--rounds N] [--between] [--json FILE]

Of builderd over HTTP, on a connection that is open, as ``POST …/exec`` has it; of podman its command line, with crun
as its runtime, in the same base root file system. Milliseconds, with the load of the machine beside them. CPU of the
service is counted until it is idle, so that the work which follows the answer counts; that of the whole run, without
what it uses in a span of idleness, contains also what is recorded once a second.

``--between`` asks instead what a command pays for what came before it: another command, an idle machine, a process that
only computes, one that writes through memory larger than the caches, podman, or podman with its clean-up, which runs on
for a while after podman has returned. In turns, that is waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from benchmarks.cpu import between, of_threads, spent, until_idle
from benchmarks.podman import Podman, podman
from tests.acceptance.live_service import cold_service

COMMAND = "/bin/true"
#: The most that a command's median may be, in milliseconds.
GOAL = 25.0
#: What comes before a command, each as long as podman's: nothing but another command, a pause, or this program.
COMPUTES = "import time\nend = time.monotonic() + 0.1\nwhile time.monotonic() < end: pass"
WRITES = (
    "import time\nend, room = time.monotonic() + 0.1, bytearray(1 << 26)\nwhile time.monotonic() < end: room[:] = room"
)
PAUSE = 0.11
WARM_UP = 3
#: Seconds for the work that is done once a second, and the longest span for what the service uses without a command.
SETTLE_SECONDS, MOST_IDLE_SECONDS = 1.5, 10.0


@dataclass(frozen=True, slots=True)
class PodmanContainer:
    """A container of podman's, in which the same command runs."""

    podman: Podman
    container: str

    def run(self) -> float:
        """Return the milliseconds until podman returns. Its clean-up runs on beside what comes next."""
        return self.podman("exec", self.container, "/bin/sh", "-c", COMMAND).took

    def run_to_the_end(self) -> float:
        """Return the same, once the clean-up has ended, too."""
        took = self.run()
        self.podman.wait_until_idle()
        return took


@dataclass(frozen=True, slots=True)
class Bench:
    """A service's process, and an app in which ``run`` runs the command."""

    service: int
    run: Callable[[], object]
    container: PodmanContainer | None

    def kinds(self) -> Mapping[str, Callable[[], object]]:
        """Return what may come before a command, by its name."""
        kinds: dict[str, Callable[[], object]] = {
            "another command": self.run,
            "a pause": lambda: time.sleep(PAUSE),
            "a process that computes": lambda: subprocess.run([sys.executable, "-ISc", COMPUTES], check=True),
            "a process that writes 64 MB": lambda: subprocess.run([sys.executable, "-ISc", WRITES], check=True),
        }
        if self.container is not None:
            kinds["podman exec"] = self.container.run
            kinds["podman exec, its clean-up too"] = self.container.run_to_the_end
        return kinds


@dataclass(slots=True)
class Samples:
    """Milliseconds of commands: by the clock until the answer, and of the service's CPU until it is idle."""

    took: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, bench: Bench) -> None:
        before, begun = of_threads(bench.service), time.perf_counter()
        bench.run()
        self.took.append((time.perf_counter() - begun) * 1000)
        self.cpu.append(until_idle(bench.service) - before)


@contextmanager
def prepared() -> Iterator[Bench]:
    """Yield a service and a container of podman's, in each of which a command has run."""
    with tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as place:
        folder = Path(place)
        folder.chmod(0o755)
        with (
            podman() as other,
            cold_service(folder / "data", BUILDERD_RATES__REQUESTS="0") as service,
            httpx.Client(timeout=60, headers={"Authorization": f"Bearer {service.token}"}) as client,
        ):
            url = f"{service.url}/api/v1/builders/{service.create('bench-exec')['uuid']}/exec"

            def run() -> None:
                response = client.post(url, json={"command": COMMAND})
                assert response.json()["data"]["exit_code"] == 0, response.text

            assert service.process
            container = None
            if other:
                sleeping = other.start("--network", "none", command=("/bin/sleep", "3600"))
                container = PodmanContainer(other, sleeping)
            for _ in range(WARM_UP):
                run()
                if container:
                    container.run_to_the_end()
            yield Bench(service.process.pid, run, container)


def measure(rounds: int) -> dict[str, Any]:
    """Return wall and CPU of commands in turns with podman's."""
    own, of_podman = Samples(), list[float]()
    with prepared() as bench:
        until_idle(bench.service)
        before, begun = spent(bench.service), time.perf_counter()
        for _ in range(rounds):
            own.add(bench)
            if bench.container is not None:
                of_podman.append(bench.container.run_to_the_end())
        time.sleep(SETTLE_SECONDS)
        after, ended = spent(bench.service), time.perf_counter()
        time.sleep(min(ended - begun, MOST_IDLE_SECONDS))
        idle = (spent(bench.service)["service"] - after["service"]) / (time.perf_counter() - ended)
    cpu = between(before, after, rounds)
    cpu["service, whole run without idle"] = round(cpu["service"] - idle * (ended - begun) / rounds, 1)
    cpu["service"] = round(statistics.fmean(own.cpu), 1)
    ms = {name: both(of) for name, of in (("builderd: exec", own.took), ("podman: exec", of_podman)) if of}
    return {"rounds": rounds, "load": os.getloadavg()[0], "cpu_ms": cpu, "ms": ms}


def measure_between(rounds: int) -> dict[str, Any]:
    """Return wall and CPU of a command by what came before it, all kinds in turns."""
    found: defaultdict[str, Samples] = defaultdict(Samples)
    with prepared() as bench:
        for _ in range(rounds):
            for name, come in bench.kinds().items():
                come()
                found[name].add(bench)
    ms = {name: {**both(of.took), "cpu": round(statistics.median(of.cpu), 1)} for name, of in found.items()}
    return {"rounds": rounds, "load": os.getloadavg()[0], "between_ms": ms}


def both(samples: list[float]) -> dict[str, float]:
    """The median and the 99th percentile."""
    return {
        "p50": round(statistics.median(samples), 1),
        "p99": round(statistics.quantiles(samples, n=100, method="inclusive")[98], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--between", action="store_true", help="by what came before the command")
    options = parser.parse_args()
    result = measure_between(options.rounds) if options.between else measure(options.rounds)
    (_print_between if options.between else _print)(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


def _print_between(result: dict[str, Any]) -> None:
    print(f"| before the command, {result['rounds']} times, load {result['load']:.1f} | p50 ms | p99 ms | CPU ms |")
    print("|---|---|---|---|")
    for name, figure in result["between_ms"].items():
        print(f"| {name} | {figure['p50']} | {figure['p99']} | {figure['cpu']} |")


def _print(result: dict[str, Any]) -> None:
    print(f"| {COMMAND}, {result['rounds']} times, load {result['load']:.1f} | p50 ms | p99 ms | goal | met |")
    print("|---|---|---|---|---|")
    for name, figure in result["ms"].items():
        met = "yes" if figure["p50"] <= GOAL else "**no**"
        goal = f"p50 ≤ {GOAL:g} | {met}" if name.startswith("builderd") else " | "
        print(f"| {name} | {figure['p50']} | {figure['p99']} | {goal} |")
    parts = ", ".join(f"{name} {took}" for name, took in result["cpu_ms"].items())
    print(f"\nCPU ms of one command: {parts}")


if __name__ == "__main__":
    main()
