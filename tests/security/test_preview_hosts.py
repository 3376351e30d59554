"""A hostile Host header leads to the route that it names, or to none."""

from __future__ import annotations

import pytest
from tests.previews.proxy import TOKEN, App, Proxy

pytestmark = pytest.mark.haproxy


@pytest.mark.parametrize(
    "spell", [str.upper, str.title, lambda h: h + ".", lambda h: h + ":80", lambda h: h + ".:65535"]
)
def test_host_spellings_lead_to_the_same_route(proxy: Proxy, app: App, spell: object) -> None:
    assert callable(spell)
    assert proxy.visitor.get(spell(proxy.open(app))).status == 200
    assert proxy.visitor.get(spell(proxy.open(app, private=True))).status == 401


@pytest.mark.parametrize(
    "host",
    [
        *(
            "{}@evil.example",
            "evil.example@{}",
            "{}:80@evil.example",
            "{}/",
            "{}#",
            "{}?",
            "{} ",
            "{}:80:80",
            "{}:x",
            "{}:-1",
        ),
        *(
            ".{}",
            "{}%00",
            "{}%2e",
            "{}\\",
            "*.localhost",
            "[{}]",
            "x.{}",
            "{},{}",
            "{};",
            "{}|",
            '"{}"',
            "{}\t",
            "",
            " ",
        ),
        *("localhost", "127.0.0.1", "[::1]", "..", "open|public|127.0.0.1|1|-|-", "%[var(txn.route)]", "routes.map"),
        "x" * 300,
        "x" * 8000,
    ],
)
def test_unknown_host_is_404(proxy: Proxy, app: App, host: str) -> None:
    spelt = host.replace("{}", proxy.open(app))
    # Blanks at the ends of a header's value are no part of it (RFC 9110, 5.5).
    allowed = {200} if spelt.strip() != spelt and spelt.strip() else {400, 404}
    answer = proxy.visitor.get(spelt)
    assert answer.status in allowed
    assert "evil" not in answer.text


def test_missing_host_is_rejected(proxy: Proxy) -> None:
    assert proxy.visitor.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").status in (400, 404)
    assert proxy.visitor.send(b"GET / HTTP/1.0\r\n\r\n").status in (400, 404)


def test_two_host_headers_are_rejected(proxy: Proxy, app: App, neighbour: App) -> None:
    one, other = proxy.open(app), proxy.open(neighbour, private=True)
    for first, second in ((one, other), (other, one)):
        request = f"GET /head HTTP/1.1\r\nHost: {first}\r\nHost: {second}\r\nConnection: close\r\n\r\n"
        assert proxy.visitor.send(request.encode()).status == 400


def test_absolute_url_with_another_host_is_rejected(proxy: Proxy, app: App, neighbour: App) -> None:
    one, other = proxy.open(app), proxy.open(neighbour, private=True)
    for first, second in ((one, other), (other, one)):
        assert proxy.visitor.get(first, f"http://{second}/head").status == 400


@pytest.mark.parametrize("scheme", ["http", "https", "ftp"])
def test_absolute_url_reaches_the_app_as_a_path(proxy: Proxy, app: App, scheme: str) -> None:
    host = proxy.open(app)
    answer = proxy.visitor.get(host, f"{scheme}://{host}/head?a=1")
    if answer.status != 400:
        assert answer.json["first"] == "GET /head?a=1 HTTP/1.1"


def test_absolute_url_with_a_token_sets_the_cookie(proxy: Proxy, app: App) -> None:
    host = proxy.open(app, private=True)
    answer = proxy.visitor.get(host, f"http://{host}/head?service_token={TOKEN}")
    assert answer.header("location") == "/head"
    assert proxy.visitor.get(host, f"http://{host}/head").status == 401
    assert proxy.visitor.get(host, f"http://user:pass@{host}/head").status in (400, 401)


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_connect_and_trace_are_rejected(proxy: Proxy, app: App, method: str) -> None:
    host = proxy.open(app)
    target = f"{host}:80" if method == "CONNECT" else "/head"
    with proxy.visitor.dial() as connection:
        connection.sendall(
            f"{method} {target} HTTP/1.1\r\nHost: {target if method == 'CONNECT' else host}\r\n\r\n".encode()
        )
        assert connection.recv(12) == b"HTTP/1.1 405"


def test_error_page_does_not_echo_the_host(proxy: Proxy) -> None:
    from builderd.previews.model import RouteState

    host = proxy.closed(RouteState.STOPPED)
    answer = proxy.visitor.browse(host.upper() + ".:81", "/<script>alert(1)</script>?<b>", "Referer: <script>")
    assert host in answer.text
    assert host.upper() not in answer.text
    assert "<script" not in answer.text
    assert ":81" not in answer.text
