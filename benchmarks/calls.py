"""What single calls take at one, 8 and 64 connections: ``GET /builders/{uuid}``, and at one connection a command.

    script/bench calls [--seconds N] [--commands N] [--json FILE]

Needs wrk. Milliseconds of the clock, and of the service's CPU for each call with what its background jobs took
meanwhile. Nothing stands beside them here: ``exec`` compares commands with podman's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
from benchmarks.cpu import between, spent
from benchmarks.exec import both
from tests.acceptance.live_service import LiveService, cold_service

CONNECTIONS = (1, 8, 64)
#: The most that the median of a call may be, in milliseconds.
GOALS = {"GET, 1 connections": 6.0, "exec of /bin/true, 1 connection": 25.0}
_UNITS = {"us": 0.001, "ms": 1, "s": 1000}

Row = Mapping[str, float]


def measure(seconds: int, commands: int) -> dict[str, Row]:
    with tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as place:
        folder = Path(place)
        folder.chmod(0o755)
        with cold_service(folder / "data", BUILDERD_RATES__REQUESTS="0") as service:
            url = f"{service.url}/api/v1/builders/{service.create('bench-calls')['uuid']}"
            found = {f"GET, {count} connections": read(service, url, count, seconds) for count in CONNECTIONS}
            found["exec of /bin/true, 1 connection"] = run(service, url, commands)
    return found


def read(service: LiveService, url: str, connections: int, seconds: int) -> Row:
    """Return the figures of a load by wrk on open connections."""
    assert service.process
    argv = ["wrk", f"-t{min(2, connections)}", f"-c{connections}", f"-d{seconds}", "--latency"]
    before = spent(service.process.pid)
    words = [*argv, "-H", f"Authorization: Bearer {service.token}", url]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    after = spent(service.process.pid)
    if "Non-2xx" in told or "Socket errors" in told:
        raise SystemExit(f"calls failed:\n{told}")
    number = re.search(r"(\d+) requests in", told)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert number, told
    assert rate, told
    ms = {f"p{part}": _percentile(told, part) for part in (50, 99)}
    return {**ms, "calls/s": float(rate[1]), "CPU": between(before, after, int(number[1]))["service"]}


def _percentile(told: str, part: int) -> float:
    found = re.search(rf"{part}%\s+([\d.]+)(us|ms|s)", told)
    assert found, told
    return round(float(found[1]) * _UNITS[found[2]], 1)


def run(service: LiveService, url: str, number: int) -> Row:
    """Return the figures of commands one after the other, on one open connection."""
    assert service.process
    spans = []
    with httpx.Client(timeout=60, headers={"Authorization": f"Bearer {service.token}"}) as client:
        for turn in range(number + 3):
            if turn == 3:  # the first ones warm up
                before, first = spent(service.process.pid), time.perf_counter()
            begun = time.perf_counter()
            response = client.post(f"{url}/exec", json={"command": "/bin/true"})
            assert response.json()["data"]["exit_code"] == 0, response.text
            spans.append((time.perf_counter() - begun) * 1000)
        rate = number / (time.perf_counter() - first)
    cpu = between(before, spent(service.process.pid), number)
    cpus = {"CPU": cpu["service"], "CPU of launcher and command": cpu["launcher and commands"]}
    return {**both(spans[3:]), "calls/s": rate, **cpus}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=5, help="of each load")
    parser.add_argument("--commands", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure(options.seconds, options.commands)
    print(f"| call, load {os.getloadavg()[0]:.1f} | p50 ms | p99 ms | calls/s | CPU ms | goal | met |")
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        launched = f" + {row['CPU of launcher and command']}" if "CPU of launcher and command" in row else ""
        goal = f"p50 ≤ {GOALS[name]:g} | {'yes' if row['p50'] <= GOALS[name] else '**no**'}" if name in GOALS else " | "
        print(f"| {name} | {row['p50']} | {row['p99']} | {row['calls/s']:.0f} | {row['CPU']}{launched} | {goal} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
