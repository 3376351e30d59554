"""How long a command beside an app takes, next to ``podman exec`` of the same command, in one run and in turns.

    script/bench exec [--rounds N] [--json FILE]

Of builderd over HTTP, on a connection that is open, as ``POST …/exec`` has it; of podman its command line, with crun
as its runtime, in the same base root file system. Milliseconds, with the load of the machine beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from benchmarks.cpu import between, spent
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
            for number in range(rounds + 3):
                if number == 3:
                    before = spent(service.process.pid)
                begun = time.perf_counter()
                response = client.post(url, json={"command": COMMAND})
                took = (time.perf_counter() - begun) * 1000
                assert response.json()["data"]["exit_code"] == 0, response.text
                theirs = other("exec", container, "/bin/sh", "-c", COMMAND).took if other else None
                if number >= 3:  # the first ones warm up
                    figures["builderd: exec"].append(took)
                    if theirs is not None:
                        figures["podman: exec"].append(theirs)
            cpu = between(before, spent(service.process.pid), rounds)
    ms = {name: both(of) for name, of in figures.items() if of}
    return {"rounds": rounds, "load": os.getloadavg()[0], "cpu_ms": cpu, "ms": ms}


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
    options = parser.parse_args()
    result = measure(options.rounds)
    print(f"| {COMMAND}, {result['rounds']} times, load {result['load']:.1f} | p50 ms | p99 ms |\n|---|---|---|")
    for name, figure in result["ms"].items():
        print(f"| {name} | {figure['p50']} | {figure['p99']} |")
    parts = ", ".join(f"{name} {took}" for name, took in result["cpu_ms"].items())
    print(f"\nCPU ms of one command: {parts}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
