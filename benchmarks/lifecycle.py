"""How long a user waits, beside the same app on the bare host and in a container engine's own ``run``, in one run.

    script/bench lifecycle [--rounds N] [--json FILE]

Every figure is the median over the rounds, in milliseconds, and stands beside the same app started by hand on this
host: the ratio is what counts, the milliseconds are this machine's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from benchmarks.podman import Podman, podman
from tests.acceptance.live_service import LiveService, body, cold_service, free_port

PYTHON = "/usr/bin/python3"

BARE = """\
import asyncio, os

async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(answer, "0.0.0.0", int(os.environ["PORT"]))
    await server.serve_forever()

asyncio.run(main())
"""

FLASK = """\
import os
from flask import Flask

app = Flask(__name__)

@app.get("/")
def index():
    return "ok"

app.run(host="0.0.0.0", port=int(os.environ["PORT"]))
"""

#: The most that a figure may be, as a ratio to the bare host or in ms: the goals of BENCHMARKS.md.
GOALS = {
    "bare: create → 200": ("ratio", 2.0),
    "flask: create → 200, layer cached": ("ratio", 1.6),
    "bare: start of a stopped one → 200": ("ratio", 1.8),
    "flask: start of a stopped one → 200": ("ratio", 1.8),
    "bare: create → 201, reviewed and tried": ("ms", 350.0),
    "flask: create → 201, reviewed and tried": ("ms", 350.0),
    "exec": ("ms", 25.0),
    "stop": ("ms", 60.0),
}


class User:
    """Calls the service over a connection that is open already, and visits its previews as the app on the host.

    A client of its own for each call would cost some 20 ms, which no figure here should have.
    """

    def __init__(self, service: LiveService, client: httpx.Client) -> None:
        self._service = service
        self._client = client

    def call(self, method: str, path: str, status: int, *, prefer: str | None = None, **options: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._service.token}"} | ({"Prefer": prefer} if prefer else {})
        url = f"{self._service.url}/api/v1{path}"
        response = self._client.request(method, url, headers=headers, **options)
        assert response.status_code == status, response.text
        data: dict[str, Any] = response.json()["data"]
        return data

    def wait_served(self, data: dict[str, Any]) -> float:
        """Visit until the app answers; return when that visit began, by perf_counter."""
        return first_answer(self._service.preview_port, data["preview_url"].split("/")[2])

    def wait_judged(self, data: dict[str, Any]) -> None:
        """Until both gates have a verdict, and the create is over."""
        deadline = time.monotonic() + 60
        while self.call("GET", f"/builders/{data['uuid']}", 200)["qa_passed"] is None:
            assert time.monotonic() < deadline, "the gates never came to a verdict"
            time.sleep(0.05)


class Clock:
    """Collects samples by name."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.samples.setdefault(name, []).append((time.perf_counter() - begun) * 1000)

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])


def first_answer(port: int, host: str = "app") -> float:
    """Ask until the app on this port answers; pauses of a millisecond. Return when it was asked, by perf_counter."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        begun = time.perf_counter()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            if connection.recv(4096).split(b" ")[1] == b"200":
                return begun
        time.sleep(0.001)
    raise AssertionError("the app never answered")


def on_the_host(clock: Clock, name: str, main: str, python: str) -> None:
    """The same app as a plain process: no isolation at all."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "main.py").write_text(main)
        with clock.time(name):
            process = subprocess.Popen(
                [python, "main.py"],
                cwd=folder,
                env={"PORT": str(port), "PATH": os.environ["PATH"]},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            first_answer(port)
        process.kill()
        process.wait()


def in_podman(clock: Clock, podman: Podman, kind: str, main: str, python: str, *words: str) -> None:
    """The same app by ``podman run``, on its bridge, with a published port, without limits."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "main.py").write_text(main)
        options = ["-e", f"PORT={port}", "-p", f"127.0.0.1:{port}:{port}", "-v", f"{folder}:/app", "-w", "/app", *words]
        with clock.time(f"{kind}: podman run → 200"):
            container = podman.start(*options, command=(python, "main.py"))
            first_answer(port)
        for _ in range(2):
            with clock.time("podman: exec"):
                podman("exec", container, "/bin/true")
        with clock.time("podman: rm -f"):
            podman("rm", "-f", "-t", "0", container)


def in_builderd(clock: Clock, user: User, kind: str, main: str, files: dict[str, str], first: str) -> None:
    """One builder's life, timed as its user sees it.

    Its first visitor does not wait for the QA gate, which only the create call does, so the two are timed apart.
    """
    request = {**body(f"bench-{kind}", main), "files": {"main.py": main, **files}}
    with clock.time(f"{kind}: {first}"):
        data = user.call("POST", "/builders", 202, prefer="respond-async", json=request)
        user.wait_served(data)
    user.wait_judged(data)
    path = f"/builders/{data['uuid']}"
    for _ in range(4):
        with clock.time("exec"):
            user.call("POST", f"{path}/exec", 200, json={"command": "/bin/true"})
    with clock.time("stop"):
        user.call("POST", f"{path}/stop", 200)
    time.sleep(0.2)  # what is left of the sandbox is removed in the background
    with clock.time(f"{kind}: start of a stopped one → 200"):
        user.call("POST", f"{path}/start", 200)
        user.wait_served(data)
    with clock.time("delete"):
        user.call("DELETE", path, 200)
    with clock.time(f"{kind}: create → 201, reviewed and tried"):
        judged = user.call("POST", "/builders", 201, json=request)
    user.call("DELETE", f"/builders/{judged['uuid']}", 200)


def host_flask(folder: Path) -> str:
    """A virtual environment with Flask, byte-compiled, for the app on the bare host."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "-q", "--python", PYTHON, str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([uv, "pip", "install", "-q", "--compile-bytecode", "--python", python, "flask"], check=True)
    return python


def measure(rounds: int) -> dict[str, Any]:
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="builderd-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        flask = host_flask(Path(folder) / "venv")
        with (
            podman() as other,
            cold_service(Path(folder) / "data") as service,
            httpx.Client(timeout=60) as client,
        ):
            user = User(service, client)
            in_builderd(clock, user, "flask", FLASK, {"requirements.txt": "flask"}, "create → 200, nothing cached")
            service.create("warm-up")
            for _ in range(rounds):
                on_the_host(clock, "bare: on the host", BARE, PYTHON)
                in_builderd(clock, user, "bare", BARE, {}, "create → 200")
                on_the_host(clock, "flask: on the host", FLASK, flask)
                in_builderd(clock, user, "flask", FLASK, {"requirements.txt": "flask"}, "create → 200, layer cached")
                if other:
                    in_podman(clock, other, "bare", BARE, PYTHON)
                    in_podman(clock, other, "flask", FLASK, flask, "-v", f"{folder}/venv:{folder}/venv:ro")
    return {"rounds": rounds, "ms": {name: round(clock.median(name), 1) for name in clock.samples}}


def table(result: dict[str, Any]) -> str:
    figures = result["ms"]
    lines = ["| what | ms | x bare host | goal | met |", "|---|---|---|---|---|"]
    for name, ms in figures.items():
        host = figures[f"{name.split(':')[0]}: on the host"] if ":" in name and "podman: " not in name else None
        ratio = ms / host if host else None
        kind, limit = GOALS.get(name, (None, 0.0))
        value = ratio if kind == "ratio" else ms
        goal = f"≤ {limit:g}{' x' if kind == 'ratio' else ' ms'}" if kind else ""
        met = ("yes" if value is not None and value <= limit else "**no**") if kind else ""
        lines.append(f"| {name} | {ms:.1f} | {f'{ratio:.2f}' if ratio else ''} | {goal} | {met} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options.rounds)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
