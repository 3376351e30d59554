"""Attacks on the API behind the previews' proxy: forged addresses, other names, floods by one address, challenges."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.domains.public_url import HOST, OURS, ask, connect, get, while_served
from tests.previews.certificates import make_pem
from tests.previews.http2 import Connection, Stream, request
from tests.previews.proxy import App, Proxy, free_port, new_host
from tests.previews.visitor import read_all
from tests.proxied import build

from builderd.previews.model import API, DomainAlias
from builderd.server.limits import ConnectionLimits

pytestmark = pytest.mark.haproxy
CHALLENGE = "/.well-known/acme-challenge/"


@pytest.fixture(scope="module")
def tls() -> Iterator[Proxy]:
    proxy = Proxy(tls_port=free_port(), serves_api=True)
    try:
        proxy.start()
        proxy.run(proxy.previews.put_domain(DomainAlias(HOST, API, make_pem(HOST))))
        yield proxy
    finally:
        proxy.close()


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    made = App("one")
    yield made
    made.stop()


def test_no_visitor_names_its_own_address(tls: Proxy) -> None:
    forged = [
        f"{name}: 6.6.6.6"
        for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X_Forwarded_For", "True-Client-IP")
    ]
    answer = while_served(tls, lambda: ask(tls, get("/seen", HOST, *forged, "X-Forwarded-Proto: http"), HOST))
    assert json.loads(answer.body) == {"client": OURS, "scheme": "https", "host": HOST}


def test_a_proxy_header_of_a_visitor_is_no_request(tls: Proxy) -> None:
    """The header is only believed on the socket of the proxy, which adds its own before each connection."""
    forged = build("6.6.6.6") + get("/seen").encode()

    def visit() -> bytes:
        with connect(tls, HOST) as connection:
            connection.sendall(forged)
            return read_all(connection)

    assert b"200 OK" not in while_served(tls, visit)


def test_over_http2_no_connection_is_used_for_another_name(tls: Proxy, app: App) -> None:
    preview, shop = tls.open(app), "shop.example.test"
    tls.run(tls.previews.put_domain(DomainAlias(shop, preview, make_pem(shop))))

    def answer(name: str, host: str) -> Stream:
        with connect(tls, name, alpn="h2") as made:
            connection = Connection(made)
            made.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            connection.open(1, request(host, "/seen"))
            return connection.finish(1)

    def visit() -> tuple[bool, ...]:
        pairs = ((HOST, HOST), (shop, shop), (shop, HOST), (HOST, shop), (preview, HOST), (HOST, preview))
        return tuple(answer(name, host).ok for name, host in pairs)

    assert while_served(tls, visit) == (True, True, False, False, False, False)
    tls.run(tls.previews.remove_domain(shop))


@pytest.mark.parametrize("host", [API, f"{API}.", "API", f"@{API}", f"{HOST}:99x", f"8000--{HOST}", "", "*"])
def test_no_spelling_of_the_host_leads_around_the_map(tls: Proxy, host: str) -> None:
    names = (None, "unknown.example.test")
    answers = while_served(tls, lambda: [ask(tls, get("/seen", host), name).status for name in names])
    assert 200 not in answers
    assert tls.visitor.get(host or "x", "/seen").status != 200


def test_no_route_can_be_the_apis(tls: Proxy) -> None:
    """A preview's host always has a dot, and so the entry of the API is no preview's."""
    assert "." in new_host()
    assert "." not in API


def test_one_address_without_a_token_keeps_no_other_out(tls: Proxy) -> None:
    limits = ConnectionLimits(total=60, strangers=40, address=10, tenant=30)

    def visit() -> tuple[int, int]:
        with ExitStack() as stack:
            for _ in range(10):
                stream = stack.enter_context(connect(tls, HOST, "127.0.0.66"))
                stream.sendall(get("/events").encode())
                assert b"200" in stream.recv(4096)
            flooded = ask(tls, get("/seen"), HOST, "127.0.0.66").status
            other = ask(tls, get("/seen"), HOST, "127.0.0.67").status
        return flooded, other

    assert while_served(tls, visit, limits) == (429, 200)


@pytest.mark.parametrize("path", [CHALLENGE, f"{CHALLENGE}x", f"{CHALLENGE}../../seen", f"{CHALLENGE}%2e%2e/seen"])
def test_the_challenge_path_reaches_neither_api_nor_app(tls: Proxy, app: App, path: str) -> None:
    preview = tls.open(app)
    hosts = (HOST, preview, f"8000--{preview}")
    answers = while_served(tls, lambda: [ask(tls, get(path, host), host).text for host in hosts])
    assert answers == ["no such challenge"] * len(hosts)
    assert [tls.visitor.get(host, path).text for host in hosts] == answers
