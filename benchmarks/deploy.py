"""`builderd deploy` of a folder of 5,000 files and 50 MB, beside `rsync -a` of the same folder, in turns.

    script/bench deploy [--rounds N] [--files N] [--bytes N]

Each round deploys the folder as a new builder and copies it to an empty one, then both again with one file changed.
Wall time, and CPU time of the client, of the service with all that it starts, and of rsync.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.cpu import spent
from tests.acceptance.live_service import TINY_APP, LiveService, cold_service

WORDS = [f"word{number}" for number in range(2000)]


def write_folder(folder: Path, files: int, size: int) -> None:
    """Write an app and texts, a third of them hexadecimal noise."""
    noise = random.Random(7)
    folder.mkdir()
    (folder / "main.py").write_text(TINY_APP)
    for number in range(files - 1):
        place = folder / f"data/{number % 50}"
        place.mkdir(parents=True, exist_ok=True)
        words = (
            noise.randbytes(size // files // 2).hex()
            if number % 3 == 0
            else " ".join(noise.choices(WORDS, k=size // files // 8))
        )
        (place / f"{number}.txt").write_text(words)


def measured(action: Callable[[], None], service: int | None = None) -> dict[str, float]:
    """Return seconds: of the clock, of the CPU of the program that is run, and of the service."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    served = sum(spent(service).values()) if service else 0.0
    action()
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": own, "service": (sum(spent(service).values()) - served) / 1000 if service else 0.0}


def run(*words: str, **more: str) -> None:
    done = subprocess.run(words, env={**os.environ, **more}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


def measure_round(service: LiveService, folder: Path, copy: Path, number: int) -> dict[str, dict[str, float]]:
    """Deploy and copy the folder, then again after a change; return seconds by what was done."""
    assert service.process is not None
    signed_in = {"BUILDERD_URL": service.url, "BUILDERD_TOKEN": service.token}
    found: dict[str, dict[str, float]] = {}
    name = f"folder-{number}"

    def deploy() -> None:
        run(sys.executable, "-m", "builderd", "deploy", "--yes", "--name", name, str(folder), **signed_in)

    def rsync() -> None:
        run("rsync", "-a", "--delete", f"{folder}/", str(copy))

    for what in ("all", "one file changed"):
        if what != "all":
            (folder / "data/1/1.txt").write_text(f"changed {number}")
        found[f"builderd deploy, {what}"] = measured(deploy, service.process.pid)
        found[f"rsync -a, {what}"] = measured(rsync)
    run(sys.executable, "-m", "builderd", "delete", name, "--yes", "--purge", **signed_in)
    shutil.rmtree(copy)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--bytes", type=int, default=50_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place, cold_service(Path(place) / "data") as service:
        write_folder(Path(place) / "folder", options.files, options.bytes)
        folder, copy = Path(place) / "folder", Path(place) / "copy"
        rounds = [measure_round(service, folder, copy, number) for number in range(options.rounds)]
    print(f"load {os.getloadavg()[0]:.1f}, medians of {options.rounds} rounds, seconds")
    print(f"{'':<36} {'wall':>7} {'program':>8} {'service':>8}")
    for what, first in rounds[0].items():
        middle = {name: statistics.median(one[what][name] for one in rounds) for name in first}
        print(f"{what:<36} {middle['wall']:>7.2f} {middle['cpu']:>8.2f} {middle['service']:>8.2f}")


if __name__ == "__main__":
    main()
