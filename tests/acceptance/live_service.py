"""A real service for acceptance tests: ``builderd serve`` as a process of its own, called over HTTP as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import httpx
from click.testing import CliRunner, Result
from tests.acceptance import forked
from tests.acceptance.forked import ForkedProcess
from tests.patience import patience

from builderd.cli.group import builderd

#: Against hanging only.
PATIENCE = patience(120.0)
#: Every call has a client and a connection of its own; none needs the host's certificates: reading them takes long.
PLAIN: dict[str, Any] = {"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "trust_env": False}

TINY_APP = """\
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

class App(BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ.get("GREETING", "hello").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

HTTPServer(("0.0.0.0", int(os.environ["PORT"])), App).serve_forever()
"""


def free_port() -> int:
    """A port that is free now on the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class LiveService:
    """One data directory and the process that serves it; ``start``, ``kill`` and ``terminate`` as often as wanted."""

    data_dir: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    preview_port: int = field(default_factory=free_port)
    ssh_port: int = field(default_factory=free_port)
    token: str = ""
    process: ForkedProcess | subprocess.Popen[bytes] | None = None
    #: Started by ``python -m builderd``, as on any machine, rather than forked from a process with its modules.
    cold: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_file(self) -> Path:
        return self.data_dir.parent / f"{self.data_dir.name}.log"

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "builderd", *self.words(*words)]

    def words(self, *words: str) -> list[str]:
        return [*words, "--data-dir", str(self.data_dir)]

    def environment(self, **more: str) -> dict[str, str]:
        src = str(Path(__file__).parents[2] / "src")
        # What comes and goes in the background is for the tests of QA and of the pool alone.
        own = {"BUILDERD_QA__REPORT": "false", "BUILDERD_SSH__PORT": str(self.ssh_port)}
        return {**os.environ, "PYTHONPATH": src, **own, **self.settings, **more}

    def start(self, fault: str | None = None) -> None:
        """Start the service and wait until it is ready; with a fault, it may also be dead before that is seen."""
        more = {"BUILDERD_FAULT": fault} if fault else {}
        ports = ("--port", str(self.port), "--preview-port", str(self.preview_port))
        with self.log_file.open("ab") as log:
            if self.cold:
                words, env = self.command("serve", *ports), self.environment(**more)
                self.process = subprocess.Popen(words, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            else:
                self.process = forked.start(self.words("serve", *ports), self.environment(**more), log.fileno())
        self.wait_ready(may_die=fault is not None)
        if not self.token:
            self.token = self.make_token("acme")

    def refused(self, code: int) -> str:
        """Start a service that ends with this exit code at once, and return its output."""
        words = self.words("serve", "--port", str(self.port), "--preview-port", str(self.preview_port))
        with TemporaryFile() as said:
            ended = forked.start(words, self.environment(), said.fileno()).wait(PATIENCE)
            said.seek(0)
            text = said.read().decode()
        assert ended == code, text
        return text

    def wait_ready(self, *, may_die: bool = False) -> None:
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                if may_die and self.process.returncode == -signal.SIGKILL:
                    return
                raise AssertionError(f"the service ended with {self.process.returncode}: {self.log_tail()}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=patience(5), **PLAIN).status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"the service is not ready: {self.log_tail()}")

    def log_tail(self) -> str:
        return self.log_file.read_text(errors="replace")[-4000:]

    def make_token(self, tenant: str, *words: str) -> str:
        return self.invoke("token", "create", "--tenant", tenant, *words).stdout.splitlines()[-1]

    def invoke(self, *words: str) -> Result:
        """Run a command of builderd in this process, since a start of Python takes seconds."""
        done = CliRunner().invoke(builderd, self.words(*words), env=self.environment(), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def wait_dead(self) -> None:
        assert self.process is not None
        self.process.wait(PATIENCE)

    def terminate(self) -> int:
        """SIGTERM, as an operator would; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def down(self) -> None:
        """End the service and everything it started."""
        if self.process is not None and self.process.poll() is None:
            self.terminate()
        with self.log_file.open("ab") as log:
            if self.cold:
                words, env = self.command("down"), self.environment()
                code = subprocess.run(words, env=env, stdout=log, stderr=log, check=False).returncode
            else:
                code = forked.start(self.words("down"), self.environment(), log.fileno()).wait()
        assert code == 0, self.log_tail()

    def call(self, method: str, path: str, *, token: str | None = None, **options: Any) -> httpx.Response:
        """One API call, ``path`` from ``/builders`` on."""
        headers = {"Authorization": f"Bearer {token or self.token}", **options.pop("headers", {})}
        return httpx.request(method, f"{self.url}/api/v1{path}", headers=headers, timeout=PATIENCE, **PLAIN, **options)

    def create(self, name: str, main: str = TINY_APP, **fields: Any) -> dict[str, Any]:
        """Create a builder of one Python file and wait for it; its ``data``."""
        response = self.call("POST", "/builders", json=body(name, main, **fields))
        assert response.status_code == 201, response.text
        data: dict[str, Any] = response.json()["data"]
        return data

    def builder(self, uuid: str) -> dict[str, Any]:
        response = self.call("GET", f"/builders/{uuid}")
        assert response.status_code == 200, response.text
        data: dict[str, Any] = response.json()["data"]
        return data

    def wait_status(self, uuid: str, *wanted: str) -> dict[str, Any]:
        """The builder once it has one of these states."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            data = self.builder(uuid)
            if data["status"] in wanted:
                return data
            time.sleep(0.1)
        raise AssertionError(f"still {json.dumps(data)}")

    def wait_served(self, data: Mapping[str, Any]) -> None:
        """Wait until the preview answers 200: a restarted builder counts as running before it answers."""
        deadline = time.monotonic() + PATIENCE
        while self.visit(data).status_code != 200:
            assert time.monotonic() < deadline, "the app does not answer"
            time.sleep(0.1)

    def wait_gone(self, uuid: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.call("GET", f"/builders/{uuid}").status_code != 404:
            assert time.monotonic() < deadline, "the builder is still there"
            time.sleep(0.1)

    @contextlib.contextmanager
    def deployed(
        self, name: str, files: Mapping[str, Any], entrypoint: str | None, **fields: Any
    ) -> Iterator[dict[str, Any]]:
        """A builder of these files that is up; deleted afterwards."""
        response = self.call("POST", "/builders", json=body(name, files=files, entrypoint=entrypoint, **fields))
        try:
            assert response.status_code == 201, response.text
            yield response.json()["data"]
        finally:
            for builder in self.call("GET", f"/builders?name={name}").json()["data"]:
                self.call("DELETE", f"/builders/{builder['uuid']}")

    def visit(self, data: Mapping[str, Any], /, path: str = "", method: str = "GET", **options: Any) -> httpx.Response:
        """A request to the preview; dials 127.0.0.1, since not every library resolves ``*.localhost``."""
        return httpx.request(method, **self._visitor(data, path, options))

    def visiting(
        self, data: Mapping[str, Any], /, path: str = "", **options: Any
    ) -> contextlib.AbstractContextManager[httpx.Response]:
        """Visit the preview and stream the answer."""
        return httpx.stream("GET", **self._visitor(data, path, options))

    def _visitor(self, data: Mapping[str, Any], path: str, options: dict[str, Any]) -> dict[str, Any]:
        headers = {"Host": data["preview_url"].split("/")[2], **options.pop("headers", {})}
        url = f"http://127.0.0.1:{self.preview_port}/{path}"
        return {"url": url, "headers": headers, "timeout": PATIENCE, **PLAIN, **options}

    def dial_preview(self) -> socket.socket:
        """A connection to the proxy, for who brings a protocol of their own."""
        return socket.create_connection(("127.0.0.1", self.preview_port), PATIENCE)


def body(name: str, main: str = TINY_APP, **fields: Any) -> dict[str, Any]:
    """A create request for one Python file."""
    request = {"name": name, "entrypoint": "python3 main.py", "files": {"main.py": main}, "port": 8000}
    return {**request, **fields}


@contextlib.contextmanager
def live_service(data_dir: Path, **settings: str) -> Iterator[LiveService]:
    """A service that is up; afterwards nothing of it is left running."""
    with running(LiveService(data_dir, settings)) as service:
        yield service


@contextlib.contextmanager
def cold_service(data_dir: Path, **settings: str) -> Iterator[LiveService]:
    """Run a service as ``live_service`` does, started by ``python -m builderd``."""
    with running(LiveService(data_dir, settings, cold=True)) as service:
        yield service
        service.cold = False


@contextlib.contextmanager
def running(service: LiveService) -> Iterator[LiveService]:
    """Run this service; afterwards nothing of it is left running."""
    try:
        service.start()
        yield service
    finally:
        # A test may have removed it.
        service.data_dir.mkdir(exist_ok=True)
        service.down()
