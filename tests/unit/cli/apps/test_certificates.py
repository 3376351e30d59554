"""The way to a service: certificates that no system trusts (``--ca``, ``SSL_CERT_FILE``), and ``HTTPS_PROXY``."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.previews.certificates import write_certificate

from builderd.cli.group import builderd

TOKEN = {
    "id": "t",
    "name": "ci",
    "scopes": ["write"],
    "created_at": "2026-01-01T00:00:00Z",
    "calls_in_24_h": 0,
    "current": True,
}


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"success": True, "message": "", "data": TOKEN}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    write_certificate(file, "builderd", "DNS:localhost")
    return file


@pytest.fixture
def url(home: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("builderd.client._sync.transport.wait_before", lambda *_: 0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://localhost:{server.server_port}"
        server.shutdown()


def run(*words: str) -> Result:
    return CliRunner().invoke(builderd, list(words), input="secret\n", prog_name="builderd")


def test_an_unknown_certificate_is_refused(url: str) -> None:
    refused = run("login", url, "--token-stdin")
    assert refused.exit_code == 5
    assert "certificate" in refused.stderr.lower()


def test_login_keeps_the_certificate_for_later_commands(
    url: str, certificate: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(certificate.parent)
    assert run("login", url, "--token-stdin", "--ca", certificate.with_suffix(".crt").name).exit_code == 0
    monkeypatch.chdir(tmp_path)
    assert run("whoami").exit_code == 0


def test_each_command_takes_a_certificate(url: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDERD_URL", url)
    monkeypatch.setenv("BUILDERD_TOKEN", "secret")
    assert run("whoami").exit_code == 5
    assert run("whoami", "--ca", str(certificate.with_suffix(".crt"))).exit_code == 0


def test_the_environments_certificates_are_trusted(
    url: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
    assert run("login", url, "--token-stdin").exit_code == 0
    assert run("whoami").exit_code == 0


def test_the_environments_proxy_is_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builderd.client._sync.transport.wait_before", lambda *_: 0)
    asked: list[bytes] = []

    def proxy(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(65536).partition(b"\r\n")[0])
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=proxy, args=(listener,), daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy", "https_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("BUILDERD_URL", "https://builderd.example")
        monkeypatch.setenv("BUILDERD_TOKEN", "secret")
        assert run("whoami").exit_code == 5
        listener.shutdown(socket.SHUT_RDWR)
    assert set(asked) == {b"CONNECT builderd.example:443 HTTP/1.1"}
