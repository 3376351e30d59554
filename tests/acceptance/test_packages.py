"""The client as its users install it, and a long log through it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.threaded_service import threaded_service

from builderd import Builderd

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MEGABYTE = 1_000_000


def test_client_from_the_source_distribution_runs(tmp_path: Path) -> None:
    """Build the sdist, install it where nothing of the checkout is in reach, and tell a story with it."""
    hatchling = Path(sys.executable).with_name("hatchling")
    subprocess.run([str(hatchling), "build", "-t", "sdist", "-d", str(tmp_path)], cwd=ROOT, check=True)
    (archive,) = tmp_path.glob("builderd-*.tar.gz")
    venv = tmp_path / "venv"
    subprocess.run(["/usr/bin/python3", "-m", "venv", str(venv)], check=True)
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BUILDERD", "VIRTUAL"))
    }
    clean |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    pip = [str(venv / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", str(archive)]
    subprocess.run(pip, env=clean, cwd=tmp_path, check=True, timeout=900)
    with threaded_service() as running:
        signed_in = {**clean, "BUILDERD_URL": running.url, "BUILDERD_TOKEN": running.admin}

        def run(*words: str, text: str = "") -> str:
            done = subprocess.run(
                [*words],
                env=signed_in,
                cwd=tmp_path,
                input=text,
                capture_output=True,
                text=True,
                check=True,
                timeout=300,
            )
            return done.stdout

        assert "builderd, version" in run(str(venv / "bin/builderd"), "--version")
        assert json.loads(run(str(venv / "bin/builderd"), "whoami", "--json"))
        assert "versions [2, 1]" in run(str(venv / "bin/python"), str(ROOT / "examples/story.py"))
        installed = run(str(venv / "bin/pip"), "list")
        assert not {"fastapi", "mcp"} & {line.partition(" ")[0] for line in installed.splitlines()}
        # The bridge for agents needs no more; this service is one without /mcp.
        answer = run(
            str(venv / "bin/builderd"), "mcp", text='{"jsonrpc": "2.0", "id": 1, "method": "server/discover"}\n'
        )
        assert "without /mcp" in json.loads(answer)["error"]["message"]


def test_command_that_shows_100_000_lines_needs_no_more_memory_than_for_1_000() -> None:
    with threaded_service() as running, Builderd(running.url, running.admin) as client:
        state = client.builders.create("app", files={"main.py": ""}, entrypoint="true").data.model_dump_json()
    few, many = (memory_of_logs(lines, state) for lines in (1_000, 100_000))
    assert many - few < 10 * MEGABYTE


def memory_of_logs(lines: int, state: str) -> int:
    """Return the most bytes that ``builderd logs`` holds while it shows so many lines."""
    with log_server(lines, state) as url:
        words = [sys.executable, "-m", "builderd", "logs", json.loads(state)["uuid"], "-n", str(lines)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "BUILDERD_URL": url, "BUILDERD_TOKEN": "t"}
        # A child that measures its own child: the maximum of this process's children is over all of them.
        program = (
            "import resource, subprocess, sys\n"
            "out = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)\n"
            "count = sum(1 for _ in out.stdout)\n"
            "assert out.wait() == 0\n"
            "print(count, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True, check=True
        )
    count, kilobytes = map(int, done.stdout.split())
    assert count == lines
    return kilobytes * 1024


@contextmanager
def log_server(lines: int, state: str) -> Iterator[str]:
    """Serve a builder with a log of so many lines, made while it is sent."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            if "/logs" not in self.path:
                self.wfile.write(f'{{"success":true,"data":{state}}}'.encode())
                return
            self.wfile.write(b'{"success":true,"data":[')
            for number in range(lines):
                text = f"line {number} {'x' * 100}"
                row = {"time": "2026-11-28T03:15:46Z", "stream": "stdout", "version": 1, "text": text}
                self.wfile.write((b"," if number else b"") + json.dumps(row, separators=(",", ":")).encode())
            self.wfile.write(b"]}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
