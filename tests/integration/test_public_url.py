"""The API under HTTPS behind the real proxy: its certificate from Debian's Pebble, its clients' addresses."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from cryptography import x509
from tests.application import World, fake_world
from tests.domains.parts import PEBBLE, DnsServer, Pebble
from tests.domains.public_url import HOST, OURS, ask, connect, get, read_until, while_served
from tests.fakes.clock import FakeClock
from tests.previews.proxy import App, Proxy, free_port
from tests.previews.visitor import Visitor, parse, read_all

from builderd.domains.authority import AcmeAuthority, AcmeOptions
from builderd.domains.model import DomainRules
from builderd.domains.name_servers import DnsNameServers, HttpChallengeProbe
from builderd.domains.renewal import DomainJob, PublicCertificateJob
from builderd.previews.haproxy.options import ProxyFiles
from builderd.previews.model import DomainAlias, Route, RouteState
from builderd.server.health import _public_url

pytestmark = [
    pytest.mark.haproxy,
    pytest.mark.skipif(not Path(PEBBLE).exists(), reason="needs Debian's package pebble: script/setup --test"),
]
SHOP = "shop.example.test"


@pytest.fixture(scope="module")
def tls() -> Iterator[Proxy]:
    trusted = (ip_network("127.0.0.9/32"),)
    proxy = Proxy(tls_port=free_port(), serves_api=True, hsts=3600, trusted_proxies=trusted)
    try:
        yield proxy.start()
    finally:
        proxy.close()


@pytest.fixture(scope="module")
def pebble(name_server: DnsServer, tls: Proxy) -> Iterator[Pebble]:
    started = Pebble(name_server.address, tls.options.port)
    yield started
    started.close()


@pytest.fixture(scope="module")
def world(tls: Proxy, name_server: DnsServer, pebble: Pebble) -> Iterator[World]:
    stack = AsyncExitStack()
    made = tls.run(stack.enter_async_context(fake_world()))
    made.clock = FakeClock(datetime.now(UTC))
    rules = DomainRules((OURS,), tls.options.port, tls.options.tls_port, directory=pebble.directory)
    made.application = replace(
        made.application,
        clock=made.clock,
        previews=tls.previews,
        domain_rules=replace(rules, public_host=HOST, orders_public=True),
        name_servers=DnsNameServers((name_server.address,)),
        challenge_probe=HttpChallengeProbe(),
        authority=AcmeAuthority(AcmeOptions(pebble.directory, "ops@example.com", pebble.roots)),
    )
    yield made
    tls.run(stack.aclose())


@pytest.fixture(scope="module")
def certificate(tls: Proxy, world: World, name_server: DnsServer) -> None:
    """Order the certificate of the API's host, after a try with records that lead elsewhere."""
    job = PublicCertificateJob(world.application)
    name_server.point(HOST, "203.0.113.9")
    tls.run(job.run_once())
    part = tls.run(_public_url(world.application))
    assert not part.ready
    assert "points elsewhere: builderd.example.test leads to 203.0.113.9" in part.message
    # Nothing goes to the API over plain HTTP, and browsers are told why.
    plain = Visitor(tls.options.port).get(HOST, "/api/v1/builders")
    assert plain.status == 503
    assert "HTTPS alone" in json.loads(plain.body)["message"]
    name_server.point(HOST, OURS)
    world.clock.move(61)
    tls.run(job.run_once())
    part = tls.run(_public_url(world.application))
    assert part.ready, part.message


@pytest.mark.usefixtures("certificate")
def test_the_api_sees_its_client_and_https(tls: Proxy) -> None:
    answer = while_served(tls, lambda: ask(tls, get("/seen", HOST, "X-Forwarded-For: 198.51.100.7"), HOST, "127.0.0.3"))
    assert json.loads(answer.body) == {"client": "127.0.0.3", "scheme": "https", "host": HOST}
    assert answer.header("strict-transport-security") == "max-age=3600"
    with connect(tls, HOST) as connection:
        der = connection.getpeercert(binary_form=True)
        assert der is not None
        assert HOST.encode() in der
        assert connection.version() in ("TLSv1.2", "TLSv1.3")


@pytest.mark.usefixtures("certificate")
def test_a_trusted_proxy_names_the_client(tls: Proxy) -> None:
    request = get("/seen", HOST, "X-Forwarded-For: 198.51.100.7", "X-Forwarded-Proto: https")
    answer = while_served(tls, lambda: ask(tls, request, HOST, "127.0.0.9"))
    assert json.loads(answer.body)["client"] == "198.51.100.7"


@pytest.mark.usefixtures("certificate")
def test_http_is_redirected_and_the_challenge_path_is_not(tls: Proxy) -> None:
    visitor = Visitor(tls.options.port)
    moved = visitor.get(HOST, "/builders?page=2")
    assert (moved.status, moved.header("location")) == (308, f"https://{HOST}:{tls.options.tls_port}/builders?page=2")
    assert visitor.get(HOST, "/.well-known/acme-challenge/none").text == "no such challenge"


@pytest.mark.usefixtures("certificate")
def test_other_names_lead_nowhere_near_the_api(tls: Proxy, app: App) -> None:
    tls.put(Route("shop-12345678.localhost", RouteState.OPEN, app.address))
    tls.run(tls.previews.put_domain(DomainAlias(SHOP, "shop-12345678.localhost")))

    def visit() -> tuple[int, ...]:
        return (
            ask(tls, get("/seen", HOST), SHOP).status,
            ask(tls, get("/seen", SHOP), HOST).status,
            ask(tls, get("/seen", "api"), None).status,
            ask(tls, get("/seen", "api"), HOST).status,
            ask(tls, get("/seen", f"{HOST}.evil.test"), HOST).status,
        )

    assert while_served(tls, visit) == (421, 421, 404, 421, 421)
    tls.run(tls.previews.remove_domain(SHOP))


@pytest.mark.usefixtures("certificate")
def test_streams_uploads_and_terminals_pass(tls: Proxy) -> None:
    def visit() -> tuple[bytes, int, bytes]:
        with connect(tls, HOST) as stream:
            stream.sendall(get("/events").encode())
            received = read_until(stream, b"data: one")
        size = 3_000_000
        post = f"POST /size HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        with connect(tls, HOST) as upload:
            upload.sendall(post.encode() + bytes(size))
            counted = json.loads(parse(read_all(upload)).body)["size"]
        upgrade = ("Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
        request = get("/api/v1/builders/x/terminal", HOST, *upgrade).replace("Connection: close", "Connection: Upgrade")
        with connect(tls, HOST, "127.0.0.5") as terminal:
            terminal.sendall(request.encode())
            said = read_until(terminal, b"wss")
        return received, counted, said

    received, counted, said = while_served(tls, visit)
    assert b"200 OK" in received
    assert counted == 3_000_000
    assert b"101 Switching" in said
    assert b"127.0.0.5 wss" in said


@pytest.mark.usefixtures("certificate")
def test_a_service_that_is_away_is_named_until_it_is_back(tls: Proxy) -> None:
    away = ask(tls, get("/seen"))
    assert (away.status, away.header("retry-after")) == (503, "2")
    assert json.loads(away.body)["code"] == "engine_unavailable"
    assert away.header("strict-transport-security") == "max-age=3600"
    assert while_served(tls, lambda: ask(tls, get("/seen"))).status == 200


@pytest.mark.usefixtures("certificate")
def test_an_address_gets_a_certificate_for_clients_that_name_no_host(tls: Proxy, world: World) -> None:
    rules = replace(world.application.domain_rules, public_host=OURS)
    tls.run(PublicCertificateJob(replace(world.application, domain_rules=rules)).run_once())
    answer = while_served(tls, lambda: ask(tls, get("/seen", OURS), None))
    assert json.loads(answer.body)["host"] == OURS
    with connect(tls, None) as connection:
        der = connection.getpeercert(binary_form=True)
        assert der is not None
        names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert names.value.get_values_for_type(x509.IPAddress) == [ip_address(OURS)]
    moved = Visitor(tls.options.port).get(OURS, "/")
    assert (moved.status, moved.header("location")) == (308, f"https://{OURS}:{tls.options.tls_port}/")
    tls.run(tls.previews.remove_domain(OURS))


@pytest.mark.usefixtures("certificate")
def test_the_socket_takes_nothing_without_the_clients_address(tls: Proxy) -> None:
    def visit() -> tuple[bytes, int]:
        path = ProxyFiles(tls.directory).api_socket
        with socket.socket(socket.AF_UNIX) as direct:
            direct.connect(str(path))
            direct.sendall(get("/seen").encode())
            try:
                answer = direct.recv(100)
            except ConnectionResetError:
                answer = b""
        return answer, path.stat().st_mode & 0o777

    assert while_served(tls, visit) == (b"", 0o600)


@pytest.mark.usefixtures("certificate")
def test_the_domain_job_leaves_the_host_of_the_api(tls: Proxy, world: World) -> None:
    before = tls.run(tls.previews.domains())[HOST]
    tls.run(DomainJob(world.application).sync())
    assert tls.run(tls.previews.domains())[HOST] == before
    # The next service takes the certificate from the database.
    tls.run(tls.previews.remove_domain(HOST))
    tls.run(PublicCertificateJob(world.application).run_once())
    assert tls.run(tls.previews.domains())[HOST] == before
