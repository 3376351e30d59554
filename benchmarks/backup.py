"""What backups cost, beside ``restic backup`` of the same folder on the bare host, in one run.

    script/bench backup [--rounds N]

A disk of 1 GB of random bytes, of which 100 MB are changed for each round. Seconds, but for the visitor's: a
client asks for a page all the time, and what counts is the longest that it waited while the disk was copied, beside
the longest in the same time without a backup.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from tests.acceptance.live_service import LiveService, cold_service

MB = 1_000_000
FILES = 100
#: Files that a round changes, of ``FILES`` of 10 MB.
CHANGED = 10
APP = """\
import asyncio, os

async def answer(reader, writer):
    while await reader.readline():
        while (await reader.readline()).strip():
            pass
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
        await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(answer, "0.0.0.0", int(os.environ["PORT"]))
    await server.serve_forever()

asyncio.run(main())
"""


class Visitor:
    """Asks all the time over one connection, and knows when it had to wait."""

    def __init__(self, service: LiveService, data: Mapping[str, Any]) -> None:
        self._over = threading.Event()
        self.waits: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._visit, args=(service, data), daemon=True)

    def __enter__(self) -> Visitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _visit(self, service: LiveService, data: Mapping[str, Any]) -> None:
        headers = {"Host": data["preview_url"].split("/")[2]}
        with httpx.Client(headers=headers, timeout=60) as client:
            while not self._over.is_set():
                begun = time.monotonic()
                assert client.get(f"http://127.0.0.1:{service.preview_port}/").status_code == 200
                self.waits.append((begun, time.monotonic() - begun))
                time.sleep(0.001)

    def longest(self, since: float, until: float) -> float:
        return max((wait for begun, wait in self.waits if begun + wait >= since and begun <= until), default=0.0)


def change(folder: Path, numbers: range) -> None:
    for number in numbers:
        path = folder / f"{number:03}"
        with path.open("wb") as file:
            for _ in range(10):
                file.write(os.urandom(MB))
        owner = folder.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
    os.sync()


def seconds(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


@contextmanager
def bare_repository(folder: Path) -> Iterator[Callable[[Path], float]]:
    """How long restic alone takes for a folder, on the file system where the service's repository is."""
    environment = {**os.environ, "RESTIC_REPOSITORY": str(folder), "RESTIC_PASSWORD": "benchmark"}

    def run(*words: str) -> None:
        subprocess.run(["restic", "--no-cache", "--quiet", *words], env=environment, check=True, capture_output=True)

    run("init")
    yield lambda app: seconds(lambda: run("backup", str(app)))


def measure(service: LiveService, scratch: Path, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    data = service.create("backup-bench", APP, resources={"disk": 6})
    app = _app_folder(service)
    change(app, range(FILES))
    path = f"/builders/{data['uuid']}/backups"

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)
        print(f"  {name}: {value:.3f}", flush=True)

    def back_up() -> dict[str, Any]:
        answer = service.call("POST", path)
        assert answer.status_code == 201, answer.text
        backup: dict[str, Any] = answer.json()["data"]
        return backup

    with bare_repository(scratch / "bare") as bare, Visitor(service, data) as visitor:
        note("first backup of 1 GB: restic on the host", bare(app))
        note("first backup of 1 GB", seconds(back_up))
        for number in range(rounds):
            change(app, range(number * CHANGED % FILES, number * CHANGED % FILES + CHANGED))
            note("100 MB changed in 1 GB: restic on the host", bare(app))
            quiet = time.monotonic()
            time.sleep(1)
            note("longest wait of a visitor in a second without a backup, ms", 1000 * visitor.longest(quiet, quiet + 1))
            begun = time.monotonic()
            back_up()
            note("100 MB changed in 1 GB", time.monotonic() - begun)
            note("longest wait of a visitor in the second of the copy, ms", 1000 * visitor.longest(begun, begun + 1))
    newest = service.call("GET", path).json()["data"][0]
    target = scratch / "target"
    environment = {**os.environ, "RESTIC_REPOSITORY": str(scratch / "bare"), "RESTIC_PASSWORD": "benchmark"}
    words = ["restic", "--no-cache", "--quiet", "restore", "latest", "--target", str(target)]
    note(
        "restore of 1 GB: restic on the host",
        seconds(lambda: subprocess.run(words, env=environment, check=True, capture_output=True)),
    )
    restored: list[httpx.Response] = []
    note(
        "restore of 1 GB as a new builder, until it serves",
        seconds(lambda: restored.append(service.call("POST", f"{path}/{newest['id']}/restore", json={"as": "second"}))),
    )
    assert restored[0].status_code == 200, restored[0].text
    note("restore drill of 1 GB (restored, compared, started, asked)", _drill(service, data["uuid"]))
    return found


def _app_folder(service: LiveService) -> Path:
    instance = json.loads((service.data_dir / "instance.json").read_text())["id"]
    (disk,) = Path(f"/run/builderd/{instance}/store/disks").iterdir()
    return disk / "app"


def _drill(service: LiveService, uuid: str) -> float:
    """The service is started again with drills that are due at once; how long the first took, by its events."""
    service.terminate()
    service.settings = {**service.settings, "BUILDERD_BACKUP__DRILL_HOURS": "0.001"}
    service.start()
    service.call("PATCH", f"/builders/{uuid}", json={"backup_interval_hours": 1000})
    for _ in range(3000):
        events = service.call("GET", f"/builders/{uuid}/events?per_page=100").json()["data"]
        ends = [one for one in events if one["type"].startswith("drill.")]
        if ends:
            assert ends[-1]["type"] == "drill.passed", ends[-1]["reason"]
            own = [one for one in events if one["details"].get("id") == ends[-1]["details"]["id"]]
            begun = min(own, key=_at)
            return _at(ends[-1]) - _at(begun)
        time.sleep(0.1)
    raise AssertionError("no drill came")


def _at(event: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bb-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    try:
        with cold_service(scratch / "data") as service:
            found = measure(service, scratch, options.rounds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"load: {os.getloadavg()[0]:.1f}")
    for name, values in found.items():
        print(
            f"{name:<68} {statistics.median(values):8.2f}  (of {len(values)}: {min(values):.2f} to {max(values):.2f})"
        )


if __name__ == "__main__":
    main()
