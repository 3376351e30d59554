"""How many builders one machine holds: memory for each idle app, and many of them at once.

script/bench density [--flask N] [--tiny N] [--json FILE]

Idle apps that just run, and the same apps frozen, with their memory in zram where the machine has it to spare.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import zram
from benchmarks.lifecycle import BARE, FLASK
from tests.acceptance.idling import until_frozen
from tests.acceptance.live_service import LiveService, body, cold_service

#: From the specification of the sandbox: 100 idle Flask apps in 2.5 GB without zram, in 1.2 GB with it; MB for each.
GOALS = {"idle Flask apps": 25.0, "frozen Flask apps, memory in zram": 12.0}


def available() -> int:
    """MemAvailable in bytes: what the kernel could hand out without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no MemAvailable")


def charged(service: LiveService) -> int:
    """Bytes that the sandboxes' control groups are charged, and what zram takes for what was moved there.

    Whatever else goes on on the machine, this is theirs alone; it leaves out what the kernel charges to nobody.
    """
    instance = json.loads((service.data_dir / "instance.json").read_text())["id"]
    unified, own = Path("/sys/fs/cgroup"), f"builderd-{instance}"
    files = (unified / own / "memory.current", unified / "memory" / own / "memory.usage_in_bytes")
    return next(int(file.read_text()) for file in files if file.exists()) + zram.used()


def fill(
    service: LiveService, kind: str, count: int, main: str, files: dict[str, str], *, asleep: bool = False
) -> dict[str, Any]:
    """Create so many builders, visit each, and say what they cost; they are deleted afterwards.

    ``asleep``: measured once they are frozen, and their memory was moved out where there is zram.
    """

    def create(index: int) -> dict[str, Any]:
        resources = {"cpu": 0.25, "memory": 0.25, "disk": 1}
        request = {**body(f"{kind}-{index}", main, resources=resources), "files": {"main.py": main, **files}}
        request["auto_stop_interval"] = 60 if asleep else 0
        answer = service.call("POST", "/builders", json=request)
        assert answer.status_code == 201, answer.text
        data: dict[str, Any] = answer.json()["data"]
        return data

    create(count)  # the layer, the caches
    time.sleep(4)
    before, charged_before, begun = available(), charged(service), time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(create, range(count)))
    seconds = time.perf_counter() - begun
    if asleep:
        for data in made:
            until_frozen(service, data)
    time.sleep(5)
    used, charge = before - available(), charged(service) - charged_before
    answered = sum(service.visit(data).status_code == 200 for data in made)
    with ThreadPoolExecutor(4) as pool:
        for builder in service.call("GET", "/builders?per_page=100").json()["data"] + made:
            pool.submit(service.call, "DELETE", f"/builders/{builder['uuid']}")
    return {
        "builders": count,
        "answered": answered,
        "MB each": round(used / count / 1e6, 1),
        "MB each, charged": round(charge / count / 1e6, 1),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--flask", type=int, default=100)
    parser.add_argument("--tiny", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    requirements = {"requirements.txt": "flask"}
    # All is promised many times over: this is about what is used of the memory.
    settings = {"BUILDERD_STORE__OVERCOMMIT": "20", "BUILDERD_RATES__REQUESTS": "0"}
    settings |= {"BUILDERD_CAPACITY__CPU": "1000", "BUILDERD_CAPACITY__MEMORY": "1000"}
    with (
        tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as folder,
        cold_service(Path(folder) / "data", BUILDERD_IDLE__FREEZE_AFTER="2", **settings) as service,
    ):
        result = {
            "idle Flask apps": fill(service, "flask", options.flask, FLASK, requirements),
            "bare asyncio apps": fill(service, "tiny", options.tiny, BARE, {}),
        }
        if zram.is_there():
            with zram.swapped_on():
                moved = fill(service, "frozen", options.flask, FLASK, requirements, asleep=True)
            result["frozen Flask apps, memory in zram"] = moved
    for name, row in result.items():
        print(f"{name}: {row}")
    for name, goal in GOALS.items():
        if name in result:
            verdict = "met" if result[name]["MB each"] <= goal else "missed"
            print(f"goal: {name}: at most {goal:g} MB each: {verdict}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
