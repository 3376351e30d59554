"""How long a command beside an app takes, next to ``podman exec`` of the same command, in one run and in turns.

    script/bench exec [--rounds N] [--json FILE]

Of builderd over HTTP, on a connection that is open, as ``POST …/exec`` has it; of podman its command line, with crun
as its runtime, in the same base root file system. Milliseconds, with the load of the machine beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import httpx
from tests.acceptance.live_service import live_service

COMMAND = "/bin/true"
CONTAINER = "builderd-bench-exec"
#: Where control groups of both versions are mounted, crun works only without the newer one.
UNIFIED = Path("/sys/fs/cgroup/unified")
PODMAN_SIDE = "--podman-side"


def podman(folder: Path) -> list[str]:
    """Its command line, with storage of its own in this folder."""
    places = ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]
    return ["podman", *places, "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", "crun"]


def podman_side(folder: Path) -> None:
    """In a mount namespace of its own: run a container, and for each line of input one command; its milliseconds."""
    if UNIFIED.is_mount():
        subprocess.run(["umount", str(UNIFIED)], check=True)
    root = max(Path("/var/lib/builderd-host/bases").glob("*/root"))
    words = podman(folder)
    run = ["run", "-d", "--name", CONTAINER, "--network", "none", "--cgroups=disabled", "--rootfs", f"{root}:O"]
    quietly([*words, *run, "/bin/sleep", "3600"])
    try:
        print("ready", flush=True)
        for _ in sys.stdin:
            begun = time.perf_counter()
            quietly([*words, "exec", CONTAINER, "/bin/sh", "-c", COMMAND])
            print((time.perf_counter() - begun) * 1000, flush=True)
    finally:
        quietly([*words, "rm", "-f", "-t", "0", CONTAINER])


def quietly(words: list[str]) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Podman:
    """The other side, asked for one command at a time."""

    def __init__(self, side: subprocess.Popen[str]) -> None:
        assert side.stdin
        assert side.stdout
        self._asked: TextIO = side.stdin  # type: ignore[assignment]
        self._told: TextIO = side.stdout  # type: ignore[assignment]
        assert self._told.readline() == "ready\n", "podman does not work here"

    def execute(self) -> float:
        self._asked.write("go\n")
        self._asked.flush()
        return float(self._told.readline())


@contextlib.contextmanager
def other_side(folder: Path) -> Iterator[Podman | None]:
    """None where there is no podman."""
    if shutil.which("podman") is None:
        print("podman is not installed: script/setup --bench", file=sys.stderr)
        yield None
        return
    command = ["unshare", "-m", "--propagation", "slave", sys.executable, "-m", "benchmarks.exec", PODMAN_SIDE]
    side = subprocess.Popen([*command, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Podman(side)
    finally:
        side.communicate()


def measure(rounds: int) -> dict[str, Any]:
    figures: dict[str, list[float]] = {"builderd: exec": [], "podman: exec": []}
    with tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as place:
        folder = Path(place)
        folder.chmod(0o755)
        with (
            other_side(folder) as other,
            live_service(folder / "data", BUILDERD_RATES__REQUESTS="0") as service,
            httpx.Client(timeout=60, headers={"Authorization": f"Bearer {service.token}"}) as client,
        ):
            url = f"{service.url}/api/v1/builders/{service.create('bench-exec')['uuid']}/exec"
            for number in range(rounds + 3):
                begun = time.perf_counter()
                response = client.post(url, json={"command": COMMAND})
                took = (time.perf_counter() - begun) * 1000
                assert response.json()["data"]["exit_code"] == 0, response.text
                theirs = other.execute() if other else None
                if number >= 3:  # the first ones warm up
                    figures["builderd: exec"].append(took)
                    if theirs is not None:
                        figures["podman: exec"].append(theirs)
    return {"rounds": rounds, "load": os.getloadavg()[0], "ms": {name: both(of) for name, of in figures.items() if of}}


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
    parser.add_argument(PODMAN_SIDE, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.podman_side:
        podman_side(options.podman_side)
        return
    result = measure(options.rounds)
    print(f"| {COMMAND}, {result['rounds']} times, load {result['load']:.1f} | p50 ms | p99 ms |\n|---|---|---|")
    for name, figure in result["ms"].items():
        print(f"| {name} | {figure['p50']} | {figure['p99']} |")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
