"""Custom domains of a real service, from outside: a certificate, deaths of the service and the proxy, a redeploy."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from cryptography import x509
from tests.acceptance.live_service import PATIENCE, TINY_APP, LiveService, body, free_port
from tests.domains.parts import DnsServer, Pebble
from tests.previews.visitor import Answer, Visitor, parse, read_all

from builderd.cli.group import builderd
from builderd.previews.haproxy.options import ProxyFiles

pytestmark = [pytest.mark.root, pytest.mark.haproxy, pytest.mark.slow]
HOST = "shop.example.test"


@pytest.fixture
def service(data_dir: Path) -> LiveService:
    return LiveService(data_dir)


@pytest.fixture
def pebble(service: LiveService, name_server: DnsServer) -> Iterator[Pebble]:
    made = Pebble(name_server.address, service.preview_port)
    yield made
    made.close()


@pytest.fixture
def parts(service: LiveService, pebble: Pebble, name_server: DnsServer) -> Iterator[tuple[LiveService, int]]:
    """A service with TLS, and its TLS port."""
    tls_port = free_port()
    service.settings = {
        "BUILDERD_PREVIEW__TLS_PORT": str(tls_port),
        "BUILDERD_ACME__DIRECTORY": pebble.directory,
        "BUILDERD_ACME__ROOTS": str(pebble.roots),
        "BUILDERD_ACME__RESOLVERS": name_server.address,
        "BUILDERD_ACME__ADDRESSES": "127.0.0.1",
    }
    try:
        service.start()
        yield service, tls_port
    finally:
        service.down()


def until(holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (answer := holds()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return answer


def get(port: int, host: str) -> Answer:
    """Return the answer over TLS; raises unless the certificate names the host."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname=host) as connection:
        certificate = connection.getpeercert(binary_form=True)
        assert certificate is not None
        assert host.encode() in certificate
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return parse(read_all(connection))


def test_a_domain_survives_deaths_and_redeploys(parts: tuple[LiveService, int], name_server: DnsServer) -> None:
    service, tls_port = parts
    builder = service.create("shop")
    path = f"/builders/{builder['uuid']}/domains"
    assert service.call("POST", path, json={"host": HOST}).status_code == 201

    def domain() -> dict[str, Any]:
        found: dict[str, Any] = service.call("GET", path).json()["data"][0]
        return found

    def reason() -> str:
        return str(domain()["reason"]) if domain()["status"] == "failed" else ""

    assert "no record" in until(reason)
    # Killed at each step, it is taken up again by the next service.
    name_server.point(HOST, "127.0.0.1")
    for point in ("domain.begun", "domain.checked", "domain.issued"):
        service.kill()
        service.start(fault=point)
        with contextlib.suppress(httpx.TransportError):
            service.call("POST", f"{path}/{HOST}/check")
        service.wait_dead()
    service.start()
    until(lambda: domain()["status"] == "active")
    assert domain()["url"] == f"https://{HOST}:{tls_port}/"
    until(lambda: _answer(tls_port) == "hello")
    assert Visitor(service.preview_port).get(HOST).status == 308

    # HAProxy dies while no service runs: the next one brings it back with the certificate.
    service.kill()
    files = ProxyFiles(service.data_dir / "previews")
    os.kill(int(files.pid.read_text()), signal.SIGKILL)
    service.start()
    until(lambda: _answer(tls_port) == "hello")

    new = body("shop", TINY_APP.replace('"hello"', '"two"'))
    changed = service.call("PUT", f"/builders/{builder['uuid']}", json={"files": new["files"]})
    assert changed.status_code == 200, changed.text
    assert _answer(tls_port) == "two"
    # Everything of the proxy is lost: its domains and certificates come from the database.
    service.down()
    service.start()
    until(lambda: _answer(tls_port) == "two")
    service.call("DELETE", f"/builders/{builder['uuid']}")
    until(lambda: _answer(tls_port) is None)


def test_the_api_is_served_at_public_url_with_a_certificate(
    parts: tuple[LiveService, int], name_server: DnsServer
) -> None:
    service, tls_port = parts
    host = "builderd.example.test"
    service.kill()
    service.settings = {**service.settings, "BUILDERD_PUBLIC_URL": f"https://{host}:{tls_port}", "BUILDERD_HSTS": "60"}
    service.start()
    until(lambda: "no record: builderd.example.test" in httpx.get(f"{service.url}/readyz", timeout=20).text)
    pending = httpx.get(f"{service.url}/readyz", timeout=20)
    assert pending.status_code == 200
    assert not pending.json()["data"]["public_url"]["ready"]
    name_server.point(host, "127.0.0.1")
    assert "builderd acme check" in pending.text
    # Else the records are looked at again a minute later, and later still after more failures.
    assert f"{host}: checked within 30 s" in _command(service, "acme", "check")
    until(lambda: httpx.get(f"{service.url}/readyz", timeout=20).json()["data"]["public_url"]["ready"])
    assert _names(tls_port, host) == {host}
    request = f"GET /api/v1/builders HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {service.token}\r\n"
    answer = _asked(tls_port, host, f"{request}Connection: close\r\n\r\n")
    assert (answer.status, answer.header("strict-transport-security")) == (200, "max-age=60")
    assert Visitor(service.preview_port).get(host, "/docs").status == 308


def test_certificates_are_served_from_a_backup_on_another_machine(
    parts: tuple[LiveService, int], pebble: Pebble, name_server: DnsServer, tmp_path: Path
) -> None:
    """Restored while the authority is gone: whatever is served comes from the backup."""
    service, tls_port = parts
    api, secret, state = "builderd.example.test", tmp_path / "passphrase", tmp_path / "state"
    secret.write_text("correct horse\n")
    secret.chmod(0o600)
    for host in (api, HOST):
        name_server.point(host, "127.0.0.1")
    service.kill()
    service.settings = {**service.settings, "BUILDERD_PUBLIC_URL": f"https://{api}:{tls_port}"}
    service.start()
    builder = service.create("shop")
    assert service.call("POST", f"/builders/{builder['uuid']}/domains", json={"host": HOST}).status_code == 201
    until(lambda: _answer(tls_port) == "hello")
    until(lambda: _names(tls_port, api) == {api})
    served = [_certificate(tls_port, host) for host in (HOST, api)]
    _command(service, "backup", str(state), "--passphrase-file", str(secret))
    service.down()
    pebble.stop()

    moved = LiveService(service.data_dir.parent / "moved", service.settings, preview_port=service.preview_port)
    try:
        _command(moved, "restore", str(state), "--passphrase-file", str(secret))
        moved.token = service.token
        moved.start()
        until(lambda: _names(tls_port, HOST) == {HOST} and _names(tls_port, api) == {api})
        assert [_certificate(tls_port, host) for host in (HOST, api)] == served
        found = moved.call("GET", f"/builders/{builder['uuid']}/domains").json()["data"][0]
        assert (found["status"], found["reason"]) == ("active", "")
        assert httpx.get(f"{moved.url}/readyz", timeout=20).json()["data"]["public_url"]["ready"]
    finally:
        moved.down()


def _command(service: LiveService, *words: str) -> str:
    argv = [*words, "--data-dir", str(service.data_dir)]
    done = CliRunner().invoke(builderd, argv, env=service.environment(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def _certificate(port: int, host: str) -> bytes | None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname=host) as connection:
        return connection.getpeercert(binary_form=True)


def _asked(port: int, host: str, request: str) -> Answer:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname=host) as connection:
        connection.sendall(request.encode())
        return parse(read_all(connection))


def _names(port: int, host: str) -> set[str]:
    """Return the names in the certificate that is served for a host."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname=host) as connection:
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    found = x509.load_der_x509_certificate(certificate).extensions
    with contextlib.suppress(x509.ExtensionNotFound):
        names = found.get_extension_for_class(x509.SubjectAlternativeName).value
        return set(names.get_values_for_type(x509.DNSName))
    return set()


def _answer(port: int) -> str | None:
    """Return what is served over TLS with a certificate for the host, None without one."""
    try:
        answer = get(port, HOST)
    except (OSError, AssertionError):
        return None
    return answer.text if answer.status == 200 else ""
