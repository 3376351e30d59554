"""Time from the create call of a sandbox to the answer of its first command, beside ``podman run`` and ``podman exec``.

    script/bench sandbox [--rounds N] [--json FILE]

One after the other without pauses, each sandbox deleted before the next is created: builderd's over HTTP on an open
connection, then podman's by its command line, with crun in the same base root file system and without limits.
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
from tests.acceptance.live_service import LiveService, cold_service

COMMAND = "/bin/true"
#: The most that the median of a create with its first command may be, in milliseconds.
GOAL = 120.0
WARM_UP = 3
RESOURCES = {"cpu": 1, "memory": 0.5, "disk": 1}


def measure(rounds: int) -> dict[str, Any]:
    figures: dict[str, list[float]] = {}

    def note(name: str, since: float) -> float:
        figures.setdefault(name, []).append((time.perf_counter() - since) * 1000)
        return time.perf_counter()

    with tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as place:
        folder = Path(place)
        folder.chmod(0o755)
        with cold_service(folder / "data", BUILDERD_RATES__REQUESTS="0") as service:
            load = os.getloadavg()[0]
            cpu = _in_builderd(service, rounds + WARM_UP, note)
        _in_podman(rounds + WARM_UP, note)
    kept = {name: of[WARM_UP:] for name, of in figures.items()}
    ms = {name: both(of) for name, of in kept.items()}
    return {"rounds": rounds, "load": load, "cpu_ms": cpu, "ms": ms}


def _in_builderd(service: LiveService, rounds: int, note: Any) -> dict[str, float]:
    """Return the CPU time of one round by part, in milliseconds."""
    assert service.process
    with httpx.Client(timeout=60, headers={"Authorization": f"Bearer {service.token}"}) as client:
        before = spent(service.process.pid)
        for number in range(rounds):
            url = f"{service.url}/api/v1/builders"
            begun = time.perf_counter()
            body = {"name": f"bench-{number}", "job_type": "sandbox", "resources": RESOURCES}
            created = client.post(url, json=body)
            then = note("builderd: create → 201", begun)
            assert created.status_code == 201, created.text
            url = f"{url}/{created.json()['data']['uuid']}"
            done = client.post(f"{url}/exec", json={"command": COMMAND})
            then = note("builderd: first exec", then)
            note("builderd: create → first exec's answer", begun)
            assert done.json()["data"]["exit_code"] == 0, done.text
            assert client.delete(url).status_code == 200
            note("builderd: delete", then)
        return between(before, spent(service.process.pid), rounds)


def _in_podman(rounds: int, note: Any) -> None:
    with podman() as other:
        for _ in range(rounds if other else 0):
            assert other
            begun = time.perf_counter()
            container = other.start(command=("/bin/sleep", "3600"))
            then = note("podman: run", begun)
            other("exec", container, COMMAND)
            then = note("podman: first exec", then)
            note("podman: run → first exec's answer", begun)
            other("rm", "-f", "-t", "0", container)
            note("podman: rm -f", then)


def both(samples: list[float]) -> dict[str, float]:
    """The median and the 95th percentile."""
    return {
        "p50": round(statistics.median(samples), 1),
        "p95": round(statistics.quantiles(samples, n=20, method="inclusive")[18], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options.rounds)
    about = f"{result['rounds']} times, load {result['load']:.1f}"
    print(f"| {about} | p50 ms | p95 ms | goal | met |\n|---|---|---|---|---|")
    for name, figure in result["ms"].items():
        judged = name.startswith("builderd: create → first exec")
        met = "yes" if figure["p50"] <= GOAL else "**no**"
        goal = f"p50 ≤ {GOAL:g} | {met}" if judged else " | "
        print(f"| {name} | {figure['p50']} | {figure['p95']} | {goal} |")
    parts = ", ".join(f"{name} {took}" for name, took in result["cpu_ms"].items())
    print(f"\nCPU ms of one round: {parts}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
