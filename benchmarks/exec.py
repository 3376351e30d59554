"""How long a command beside an app takes, next to ``podman exec`` of the same command, in one run and in turns.

    script/bench exec [--rounds N] [--between] [--json FILE]

Of builderd over HTTP, on a connection that is open, as ``POST …/exec`` has it; of podman its command line, with crun
as its runtime, in the same base root file system. Milliseconds, with the load of the machine beside them.

``--between`` asks instead what a command pays for what came before it: another command, an idle machine, a process that
only computes, one that writes through memory larger than the caches, or podman.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from benchmarks.cpu import between, of_threads, spent
from benchmarks.podman import podman
from tests.acceptance.live_service import cold_service

COMMAND = "/bin/true"


def measure(rounds: int) -> dict[str, Any]:
    figures: dict[str, list[float]] = {"builderd: exec": [], "podman: exec": []}
    with tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as place:
        folder = Path(place)
        folder.chmod(0o755)
        with (
            podman() as other,
            cold_service(folder / "data", BUILDERD_RATES__REQUESTS="0") as service,
            httpx.Client(timeout=60, headers={"Authorization": f"Bearer {service.token}"}) as client,
        ):
            url = f"{service.url}/api/v1/builders/{service.create('bench-exec')['uuid']}/exec"
            container = other.start("--network", "none", command=("/bin/sleep", "3600")) if other else ""
            assert service.process
            before: dict[str, float] = {}
            service_cpu: list[float] = []
            for number in range(rounds + 3):
                if number == 3:
                    before = spent(service.process.pid)
                used, begun = of_threads(service.process.pid), time.perf_counter()
                response = client.post(url, json={"command": COMMAND})
                took = (time.perf_counter() - begun) * 1000
                used = of_threads(service.process.pid) - used
                assert response.json()["data"]["exit_code"] == 0, response.text
                theirs = other("exec", container, "/bin/sh", "-c", COMMAND).took if other else None
                if number >= 3:  # the first ones warm up
                    service_cpu.append(used)
                    figures["builderd: exec"].append(took)
                    if theirs is not None:
                        figures["podman: exec"].append(theirs)
            cpu = between(before, spent(service.process.pid), rounds)
            cpu["service"] = round(statistics.fmean(service_cpu), 1)  # without what it does while podman runs
    ms = {name: both(of) for name, of in figures.items() if of}
    return {"rounds": rounds, "load": os.getloadavg()[0], "cpu_ms": cpu, "ms": ms}


#: What comes before a command, each as long as podman's: nothing but another command, a pause, or this program.
COMPUTES = "import time\nend = time.monotonic() + 0.1\nwhile time.monotonic() < end: pass"
WRITES = (
    "import time\nend, room = time.monotonic() + 0.1, bytearray(1 << 26)\nwhile time.monotonic() < end: room[:] = room"
)
PAUSE = 0.11


def measure_between(rounds: int) -> dict[str, Any]:
    """Return wall and CPU of a command by what came before it, all kinds in turns."""
    took: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as place:
        folder = Path(place)
        folder.chmod(0o755)
        with (
            podman() as other,
            cold_service(folder / "data", BUILDERD_RATES__REQUESTS="0") as service,
            httpx.Client(timeout=60, headers={"Authorization": f"Bearer {service.token}"}) as client,
        ):
            url = f"{service.url}/api/v1/builders/{service.create('bench-exec')['uuid']}/exec"
            container = other.start("--network", "none", command=("/bin/sleep", "3600")) if other else ""
            assert service.process

            def ask() -> None:
                assert client.post(url, json={"command": COMMAND}).json()["data"]["exit_code"] == 0

            kinds: dict[str, Callable[[], object]] = {
                "another command": ask,
                "a pause": lambda: time.sleep(PAUSE),
                "a process that computes": lambda: subprocess.run([sys.executable, "-ISc", COMPUTES], check=True),
                "a process that writes 64 MB": lambda: subprocess.run([sys.executable, "-ISc", WRITES], check=True),
            }
            if other:
                kinds["podman exec"] = lambda: other("exec", container, "/bin/sh", "-c", COMMAND)
            for _ in range(3):
                ask()
            for _ in range(rounds):
                for name, come in kinds.items():
                    come()
                    before, begun = of_threads(service.process.pid), time.perf_counter()
                    ask()
                    took.setdefault(name, []).append((time.perf_counter() - begun) * 1000)
                    cpu.setdefault(name, []).append(of_threads(service.process.pid) - before)
    ms = {name: {**both(of), "cpu": round(statistics.median(cpu[name]), 1)} for name, of in took.items()}
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
    if options.between:
        result = measure_between(options.rounds)
        print(f"| before the command, {result['rounds']} times, load {result['load']:.1f} | p50 ms | p99 ms | CPU ms |")
        print("|---|---|---|---|")
        for name, figure in result["between_ms"].items():
            print(f"| {name} | {figure['p50']} | {figure['p99']} | {figure['cpu']} |")
    else:
        result = measure(options.rounds)
        _print(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


def _print(result: dict[str, Any]) -> None:
    print(f"| {COMMAND}, {result['rounds']} times, load {result['load']:.1f} | p50 ms | p99 ms |\n|---|---|---|")
    for name, figure in result["ms"].items():
        print(f"| {name} | {figure['p50']} | {figure['p99']} |")
    parts = ", ".join(f"{name} {took}" for name, took in result["cpu_ms"].items())
    print(f"\nCPU ms of one command: {parts}")


if __name__ == "__main__":
    main()
