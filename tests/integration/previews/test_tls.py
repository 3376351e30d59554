"""TLS and HTTP/2 with a certificate, and a renewed certificate without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.previews.certificates import write_certificate
from tests.previews.proxy import TOKEN, App, Proxy, eventually

from builderd.core.errors import EngineUnavailable
from builderd.previews.haproxy import domain_table
from builderd.previews.haproxy.domain_table import watch_certificate

pytestmark = pytest.mark.haproxy


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tls") / "with a space.pem"
    write_certificate(file, "first")
    return file


@pytest.fixture(scope="module")
def tls(pem: Path) -> Iterator[Proxy]:
    proxy = Proxy(certificate=pem)
    with pytest.MonkeyPatch.context() as patch:
        # The service of all these tests looks at the file once; then they do.
        patch.setattr(domain_table, "CERTIFICATE_INTERVAL", 3600)
        try:
            yield proxy.start()
        finally:
            proxy.close()


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_both_versions_of_http_reach_the_app(tls: Proxy, app: App, version: str) -> None:
    host = tls.open(app)
    said = json.loads(curl(tls, host, "/head?a=1", version))
    assert said["first"] == "GET /head?a=1 HTTP/1.1"
    headers = dict(said["headers"])
    assert headers["host"] == f"{host}:{tls.options.port}"
    assert headers["x-forwarded-proto"] == "https"
    assert headers["x-forwarded-for"] == "127.0.0.1"


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_link_sets_a_cookie_that_only_this_origin_can_set(tls: Proxy, app: App, version: str) -> None:
    host = tls.open(app, private=True)
    head = curl(tls, host, f"/head?service_token={TOKEN}", version, "--head").lower()
    assert "location: /head\n" in head
    wanted = f"set-cookie: __Host-builderd_service_token={TOKEN}; Path=/; Secure; HttpOnly; SameSite=Lax\n"
    assert wanted.lower() in head


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_secure_cookie_opens_the_preview_and_the_plain_one_does_not(tls: Proxy, app: App, version: str) -> None:
    host = tls.open(app, private=True)
    said = json.loads(curl(tls, host, "/head", version, "-b", f"a=b; __Host-builderd_service_token={TOKEN}; c=d"))
    assert dict(said["headers"])["cookie"] == "a=b; c=d"
    assert "unauthenticated" in curl(tls, host, "/head", version, "-b", f"builderd_service_token={TOKEN}")


async def look_at(pem: Path, tls: Proxy) -> None:
    """Watch the file for 0.2 s. The proxy may be at the work of an earlier test's service still."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await watch_certificate(pem, tls.directory / "admin.sock")


def is_served(tls: Proxy, pem: Path, name: str) -> bool:
    tls.run(look_at(pem, tls))
    return bool(organisation(tls) == name)


def test_a_running_service_notices_by_itself(tls: Proxy, pem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve_and_renew() -> None:
        service = tls.service()
        await service.start()
        await asyncio.sleep(0.05)
        await asyncio.to_thread(write_certificate, pem, "noticed")
        await asyncio.to_thread(eventually, lambda: organisation(tls) == "noticed")

    monkeypatch.setattr(domain_table, "CERTIFICATE_INTERVAL", 0.01)
    asyncio.run(serve_and_renew())


def test_broken_certificate_is_logged_once_and_the_old_kept(
    tls: Proxy, pem: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_certificate(pem, "good")
    monkeypatch.setattr(domain_table, "CERTIFICATE_INTERVAL", 0.01)
    eventually(partial(is_served, tls, pem, "good"))
    good = pem.read_text()
    try:
        for bad in (
            "",
            "no certificate at all",
            good.replace("BEGIN CERTIFICATE", "BEGIN NONSENSE"),
            good[: len(good) // 2],
        ):
            caplog.clear()
            pem.write_text(bad)
            with caplog.at_level(logging.ERROR):
                assert is_served(tls, pem, "good")
            assert len(caplog.records) == 1
            assert str(pem) in caplog.text
    finally:
        pem.write_text(good)


def test_without_a_certificate_it_does_not_start_and_says_why(tmp_path: Path) -> None:
    proxy = Proxy(certificate=tmp_path / "missing.pem")
    try:
        with pytest.raises(EngineUnavailable, match=r"missing\.pem"):
            proxy.start()
    finally:
        proxy.close()


def curl(proxy: Proxy, host: str, path: str, *arguments: str) -> str:
    port = proxy.options.port
    argv = ("curl", "-sk", "--max-time", "20", "--resolve", f"{host}:{port}:127.0.0.1", *arguments)
    return subprocess.run((*argv, f"https://{host}:{port}{path}"), check=True, capture_output=True, text=True).stdout


def organisation(proxy: Proxy) -> Any:
    """Return the organisation in the certificate that a new connection gets."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(proxy.visitor.dial(), server_hostname="a.localhost") as connection:
        der = connection.getpeercert(binary_form=True)
    assert der is not None
    pem = ssl.DER_cert_to_PEM_cert(der)
    argv = ("openssl", "x509", "-noout", "-subject", "-nameopt", "multiline")
    subject = subprocess.run(argv, input=pem, capture_output=True, text=True, check=True).stdout
    return next(line.split("=")[1].strip() for line in subject.splitlines() if "organizationName" in line)
