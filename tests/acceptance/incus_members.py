"""Parts of tests of members that are lost, cut off or evacuated: a writing app, its visitors, and looks at Incus."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from tests.acceptance.live_service import LiveService
from tests.incus import IncusCluster

#: Against hanging only.
MOST_SECONDS = 600

#: Writes a line with the number of its run and a count into its disk every 20 ms, and answers with the number.
WRITING_APP = """\
import os, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

run = os.urandom(4).hex()

def write():
    count = 0
    while True:
        count += 1
        with open("written", "a") as written:
            written.write(f"{run} {count}\\n")
        time.sleep(0.02)

threading.Thread(target=write, daemon=True).start()

class App(BaseHTTPRequestHandler):
    def do_GET(self):
        body = run.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), App).serve_forever()
"""


def until(is_true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + MOST_SECONDS
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def events(service: LiveService, uuid: str) -> list[str]:
    found = service.call("GET", f"/builders/{uuid}/events?per_page=100").json()["data"]
    return [one["type"] for one in found]


def builderd(service: LiveService, *words: str) -> Any:
    """Run ``builderd cluster`` with --json, as the operator does; its output."""
    command = service.command("cluster", *words, "--json")
    done = subprocess.run(command, env=service.environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ask(cluster: IncusCluster, path: str, member: int = 1) -> Any:
    """Return the metadata of Incus's answer to a GET, asked of a member."""
    url = f"http://incus/1.0/{path}{'&' if '?' in path else '?'}project=builderd"
    command = ["curl", "-sS", "--max-time", "60", "--unix-socket", str(cluster.socket(member)), url]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["metadata"]


def volumes(cluster: IncusCluster) -> set[str]:
    """Return the disks in the cluster as ``name@member``."""
    found = ask(cluster, "storage-pools/default/volumes/custom?recursion=1")
    return {f"{one['name']}@{one['location']}" for one in found if one["name"].startswith("disk-")}


def apps(cluster: IncusCluster) -> list[dict[str, Any]]:
    """Return the instances of apps, also ended ones that are kept for their logs."""
    return [one for one in ask(cluster, "instances?recursion=1") if one["name"].startswith("s-")]


def running(cluster: IncusCluster, member: str) -> set[str]:
    """Return the apps that run on a member."""
    found = apps(cluster)
    return {one["name"] for one in found if one["location"] == member and one["status"] == "Running"}


def lines_of(cluster: IncusCluster, member: int, disk: str) -> list[str]:
    """Return what the app has written on its disk, read on the member itself; also while it is cut off."""
    (folder,) = cluster.in_pool(f"node{member}", [f"custom/builderd_{disk}"])
    return cluster.run("exec", str(member), "cat", f"{folder}/app/written").stdout.splitlines()


def runs_of(lines: list[str]) -> list[str]:
    """Return the runs of the app that wrote the lines, in the order of their first line; each wrote in one piece."""
    found: list[str] = []
    for line in lines:
        run = line.split()[0]
        if not found or found[-1] != run:
            assert run not in found, "two runs wrote at the same time"
            found.append(run)
    return found


class Visitors:
    """Visit a preview again and again in a thread, and note when each answer came and what it was."""

    def __init__(self, service: LiveService, data: Mapping[str, Any], pause: float = 0.05) -> None:
        self.answers: list[tuple[float, float, str]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._visit, args=(service, data, pause), daemon=True)

    def __enter__(self) -> Visitors:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    @property
    def failures(self) -> list[str]:
        return [what for _, _, what in self.answers if what != "200"]

    @property
    def longest(self) -> float:
        """Return the seconds of the slowest answer."""
        return max(seconds for _, seconds, _ in self.answers)

    def _visit(self, service: LiveService, data: Mapping[str, Any], pause: float) -> None:
        while not self._over.wait(pause):
            begun = time.monotonic()
            try:
                what = str(service.visit(data).status_code)
            except httpx.TransportError as error:
                what = repr(error)
            self.answers.append((begun, time.monotonic() - begun, what))
