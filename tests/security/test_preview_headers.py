"""Spoofed headers of visitors do not reach an app; those of a trusted proxy in front do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_network

import pytest
from tests.previews.proxy import TOKEN, App, Proxy

pytestmark = pytest.mark.haproxy

FORGED = (
    "X-Forwarded-For: 6.6.6.6",
    "x-forwarded-for: 6.6.6.7, 6.6.6.8",
    "X_Forwarded_For: 6.6.6.6",
    "X-Forwarded_For: 6.6.6.6",
    "X-Forwarded-Proto: 6.6.6.6",
    "X-Forwarded-Host: 6.6.6.6",
    "X-Forwarded-Port: 6.6.6.6",
    "X-Forwarded-Prefix: 6.6.6.6",
    "X-Forwarded-Anything: 6.6.6.6",
    "Forwarded: for=6.6.6.6;proto=https;host=6.6.6.6",
    "X-Forwarded: for=6.6.6.6",
    "X-Original-Forwarded-For: 6.6.6.6",
    "Forwarded-For: 6.6.6.6",
    "X-Real-IP: 6.6.6.6",
    "Client-IP: 6.6.6.6",
    "CF-Connecting-IP: 6.6.6.6",
    "Fastly-Client-IP: 6.6.6.6",
    "X-Client-IP: 6.6.6.6",
    "X-Cluster-Client-IP: 6.6.6.6",
    "True-Client-IP: 6.6.6.6",
    "Proxy: http://6.6.6.6/",
)


def test_app_receives_forwarded_headers_of_the_proxy(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    seen = proxy.visitor.get(f"{host}:81").seen
    assert seen["host"] == [f"{host}:81"]
    assert seen["x-forwarded-for"] == ["127.0.0.1"]
    assert seen["x-forwarded-proto"] == ["http"]
    assert seen["x-forwarded-host"] == [f"{host}:81"]


def test_spoofed_forwarded_headers_are_dropped(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    for lines in (*((line,) for line in FORGED), FORGED):
        answer = proxy.visitor.get(host, "/head", *lines)
        assert answer.status == 200
        assert "6.6.6" not in answer.text
        assert answer.seen["x-forwarded-for"] == ["127.0.0.1"]
        assert answer.seen["x-forwarded-proto"] == ["http"]
        assert answer.seen["x-forwarded-host"] == [host]


def test_connection_header_cannot_remove_forwarded_headers(proxy: Proxy, app: App) -> None:
    """Hop-by-hop abuse: a proxy must not drop what it set itself because a visitor lists it."""
    host = proxy.open(app)
    request = (
        f"GET /head HTTP/1.1\r\nHost: {host}\r\n"
        "Connection: close, X-Forwarded-For, X-Forwarded-Proto, X-Real-IP, Host, Cookie\r\nCookie: a=b\r\n\r\n"
    )
    seen = proxy.visitor.send(request.encode()).seen
    assert seen["x-forwarded-for"] == ["127.0.0.1"]
    assert seen["host"] == [host]


@pytest.mark.parametrize("count", [100, 101, 500, 5000])
def test_request_with_many_headers_is_answered(proxy: Proxy, app: App, count: int) -> None:
    answer = proxy.visitor.get(proxy.open(app), "/head", *(f"X-{number}: y" for number in range(count)))
    assert answer.status in (200, 400, 431)


@pytest.mark.parametrize("size", [8_000, 15_000, 17_000, 60_000])
def test_request_with_huge_header_is_answered(proxy: Proxy, app: App, size: int) -> None:
    answer = proxy.visitor.get(proxy.open(app), "/head", f"X-Huge: {'x' * size}")
    assert answer.status == (200 if size < 15_000 else answer.status)
    assert answer.status in (200, 400, 413, 431)
    assert proxy.visitor.get(proxy.open(app)).status == 200


@pytest.mark.parametrize("size", [8_000, 17_000, 60_000])
def test_request_with_huge_url_is_answered(proxy: Proxy, app: App, size: int) -> None:
    assert proxy.visitor.get(proxy.open(app), f"/head?{'x' * size}").status in (200, 400, 414)


@pytest.mark.parametrize(
    "line", [b"X: a\0b", b"X\0: a", b"X: a\x01", b"X\x7f: a", b": a", b"X", b" X: a", b"X: a\rY: b"]
)
def test_header_with_forbidden_bytes_does_not_become_another_header(proxy: Proxy, app: App, line: bytes) -> None:
    host = proxy.open(app)
    request = b"GET /head HTTP/1.1\r\nHost: %s\r\n%s\r\nConnection: close\r\n\r\n" % (host.encode(), line)
    answer = proxy.visitor.send(request)
    assert answer.status in (200, 400)
    if answer.status == 200:
        assert "y" not in answer.seen


# A proxy in front


@pytest.fixture(scope="module")
def behind() -> Iterator[Proxy]:
    """A proxy whose visitors come from 127.0.0.1, which is trusted."""
    proxy = Proxy(trusted_proxies=(ip_network("127.0.0.0/8"),))
    try:
        yield proxy.start()
    finally:
        proxy.close()


def test_forwarded_headers_of_a_trusted_proxy_are_used(behind: Proxy, app: App) -> None:
    host = behind.open(app)
    seen = behind.visitor.get(host, "/head", "X-Forwarded-For: 9.9.9.9", "X-Forwarded-Proto: https").seen
    assert seen["x-forwarded-for"] == ["9.9.9.9"]
    assert seen["x-forwarded-proto"] == ["https"]
    assert seen["x-forwarded-host"] == [host]


def test_only_the_last_address_of_a_trusted_proxy_is_used(behind: Proxy, app: App) -> None:
    """The trusted proxy adds at the end; what stands before came from outside."""
    seen = behind.visitor.get(behind.open(app), "/head", "X-Forwarded-For: 6.6.6.6, 9.9.9.9").seen
    assert seen["x-forwarded-for"] == ["9.9.9.9"]


@pytest.mark.parametrize("line", ["X-Forwarded-For: nonsense", "X-Forwarded-For:", "X-Other: 1"])
def test_unusable_forwarded_address_falls_back_to_the_proxy_address(behind: Proxy, app: App, line: str) -> None:
    assert behind.visitor.get(behind.open(app), "/head", line).seen["x-forwarded-for"] == ["127.0.0.1"]


@pytest.mark.parametrize("schemes", [("ftp",), ("javascript",), ("https, http",), ("",), ("https", "javascript")])
def test_unknown_forwarded_scheme_is_ignored(behind: Proxy, app: App, schemes: tuple[str, ...]) -> None:
    lines = [f"X-Forwarded-Proto: {scheme}" for scheme in schemes]
    assert behind.visitor.get(behind.open(app), "/head", *lines).seen["x-forwarded-proto"] == ["http"]


def test_last_of_two_forwarded_schemes_is_used(behind: Proxy, app: App) -> None:
    lines = ("X-Forwarded-Proto: javascript", "X-Forwarded-Proto: HTTPS")
    assert behind.visitor.get(behind.open(app), "/head", *lines).seen["x-forwarded-proto"] == ["https"]


def test_forwarded_address_is_per_request_on_a_shared_connection(behind: Proxy, app: App) -> None:
    host = behind.open(app)
    with behind.visitor.dial() as connection:
        for address in ("9.9.9.1", "9.9.9.2", None, "9.9.9.3"):
            from tests.previews.visitor import parse, read_until

            line = f"X-Forwarded-For: {address}\r\n" if address else ""
            connection.sendall(f"GET /head HTTP/1.1\r\nHost: {host}\r\n{line}\r\n".encode())
            head = read_until(connection, b"\r\n\r\n")
            answer = parse(head + connection.recv(65_536))
            assert answer.seen["x-forwarded-for"] == [address or "127.0.0.1"]


def test_token_cookie_is_secure_for_https_visitors(behind: Proxy, app: App) -> None:
    host = behind.open(app, private=True)
    link = f"/head?service_token={TOKEN}"
    secure = behind.visitor.get(host, link, "X-Forwarded-Proto: https").header("set-cookie") or ""
    plain = behind.visitor.get(host, link).header("set-cookie") or ""
    assert secure.startswith("__Host-builderd_service_token=")
    assert "Secure" in secure
    assert plain.startswith("builderd_service_token=")
    for cookie in (secure, plain):
        assert behind.visitor.get(host, "/head", f"Cookie: {cookie.split(';')[0]}").status == 200


def test_forwarded_headers_of_an_untrusted_proxy_are_ignored(make_proxy: Callable[..., Proxy], app: App) -> None:
    proxy = make_proxy(trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("fd00::/8"))).start()
    seen = proxy.visitor.get(proxy.open(app), "/head", *FORGED).seen
    assert seen["x-forwarded-for"] == ["127.0.0.1"]
    assert seen["x-forwarded-proto"] == ["http"]
