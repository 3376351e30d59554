"""HTTP/2: what its framing allows and HTTP/1 does not, becomes no second request and no forged header at the app."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable

import pytest
from tests.previews.http2 import DATA, END_STREAM, Header, Stream, dial, request
from tests.previews.proxy import TOKEN, App, Proxy, eventually
from tests.previews.visitor import Visitor

pytestmark = pytest.mark.haproxy


def ask(proxy: Proxy, headers: list[Header], body: bytes | None = None) -> Stream:
    connection = dial(proxy.visitor)
    with connection.socket:
        connection.open(1, headers, ends=body is None)
        if body is not None:
            connection.send(DATA, END_STREAM, 1, body)
        return connection.finish(1)


def test_a_plain_request_reaches_the_app(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    answer = ask(proxy, request(host, "/head?a=1"))
    assert answer.ok
    said = json.loads(answer.body)
    assert said["first"] == "GET /head?a=1 HTTP/1.1"
    assert dict(said["headers"])["host"] == host
    assert dict(said["headers"])["x-forwarded-for"] == "127.0.0.1"


def test_a_private_preview_is_as_private(proxy: Proxy, app: App) -> None:
    host = proxy.open(app, private=True)
    assert not ask(proxy, request(host)).ok
    answer = ask(proxy, request(host, "/head", (b"x-service-token", TOKEN.encode())))
    assert answer.ok
    assert TOKEN.encode() not in answer.body


def test_a_token_in_split_cookies_is_taken_out(proxy: Proxy, app: App) -> None:
    """HTTP/2 may send each cookie by itself (RFC 9113, 8.2.3)."""
    host = proxy.open(app, private=True)
    crumbs = ((b"cookie", b"a=b"), (b"cookie", f"builderd_service_token={TOKEN}".encode()), (b"cookie", b"c=d"))
    answer = ask(proxy, request(host, "/head", *crumbs))
    assert answer.ok
    assert dict(json.loads(answer.body)["headers"])["cookie"] == "a=b; c=d"


FORGED = b"6.6.6.6"

ODD: dict[str, list[Header]] = {
    "a line break in a value": [(b"x-a", b"b\r\nX-Forwarded-For: " + FORGED)],
    "a line feed in a value": [(b"x-a", b"b\nX-Forwarded-For: " + FORGED)],
    "a whole request in a value": [(b"x-a", b"b\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")],
    "a line break in a name": [(b"x-a: b\r\nx-forwarded-for", FORGED)],
    "a colon in a name": [(b"x-forwarded-for: 6.6.6.6", b"")],
    "a blank in a name": [(b"x-forwarded-for ", FORGED)],
    "an upper-case name": [(b"X-Forwarded-For", FORGED)],
    "an empty name": [(b"", FORGED)],
    "a NUL": [(b"x-a", b"\0" + FORGED)],
    "the plain header": [(b"x-forwarded-for", FORGED)],
    "an underscore": [(b"x_forwarded_for", FORGED)],
    "chunked": [(b"transfer-encoding", b"chunked")],
    "a connection header": [(b"connection", b"x-forwarded-for")],
    "an upgrade": [(b"upgrade", b"h2c")],
    "another host": [(b"host", b"elsewhere.localhost")],
    "a second path": [(b":path", b"/smuggled")],
    "a second authority": [(b":authority", b"elsewhere.localhost")],
    "a made-up pseudo header": [(b":forged", FORGED)],
}


@pytest.mark.parametrize("name", ODD)
def test_no_header_becomes_another(proxy: Proxy, app: App, name: str) -> None:
    host = proxy.open(app)
    before = asked(proxy, host, "/smuggled")
    answer = ask(proxy, request(host, "/head", *ODD[name]))
    assert FORGED not in answer.body
    if answer.ok:
        said = json.loads(answer.body)
        seen = dict(said["headers"])
        assert said["first"] == "GET /head HTTP/1.1"
        assert seen["host"] == host
        assert seen["x-forwarded-for"] == "127.0.0.1"
        assert not {"transfer-encoding", "upgrade"} & seen.keys()
    else:
        assert answer.refused or b"400" in answer.head or answer.head.startswith(b"\x8c")
    assert asked(proxy, host, "/smuggled") == before


@pytest.mark.parametrize(
    "path", ["", "head", "*", "/he ad", "/head HTTP/1.1\r\nX: y", "http://elsewhere/", "/head\0", "//x"]
)
def test_no_path_becomes_another_request(proxy: Proxy, app: App, path: str) -> None:
    host = proxy.open(app)
    answer = ask(proxy, request(host, path))
    if answer.ok:
        said = json.loads(answer.body)
        assert said["first"].count(" ") == 2
        assert dict(said["headers"])["host"] == host
    assert proxy.visitor.get(host).status == 200


@pytest.mark.parametrize("method", ["GET / HTTP/1.1\r\nX: y\r\n\r\nGET", "G T", "", "CONNECT", "TRACE"])
def test_no_method_becomes_another_request(proxy: Proxy, app: App, method: str) -> None:
    assert not ask(proxy, request(proxy.open(app), method=method)).ok


@pytest.mark.parametrize("length", [b"0", b"1", b"100", b"-1", b"abc", b"5, 5"])
def test_a_length_that_is_not_the_bodys_is_refused(proxy: Proxy, app: App, length: bytes) -> None:
    host = proxy.open(app)
    before = asked(proxy, host, "/smuggled")
    hidden = f"GET /smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    answer = ask(proxy, request(host, "/upload", (b"content-length", length), method="POST"), hidden)
    # An app may answer a request of declared length 0 before the rest of it is refused: it saw none of that rest.
    assert answer.refused or not answer.ok or json.loads(answer.body)["size"] == int(length)
    assert asked(proxy, host, "/smuggled") == before


def test_a_body_without_a_length_is_one_body(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    answer = ask(proxy, request(host, "/upload", method="POST"), b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n")
    assert answer.ok
    assert json.loads(answer.body)["size"] == 31


def test_streams_of_two_hosts_stay_apart(proxy: Proxy, app: App, neighbour: App) -> None:
    one, other = proxy.open(app), proxy.open(neighbour)
    connection = dial(proxy.visitor)
    with connection.socket:
        for stream in range(1, 41, 2):
            connection.open(stream, request(one if stream % 4 == 1 else other))
            answer = connection.finish(stream)
            assert json.loads(answer.body)["name"] == ("app" if stream % 4 == 1 else "neighbour")


def asked(proxy: Proxy, host: str, path: str) -> int:
    """Return the number of requests of this path that the app has seen."""
    count: int = proxy.visitor.get(host, f"/head?{path}").json["asked"]
    return count


def test_one_address_holds_its_share_of_connections_and_requests(
    make_proxy: Callable[..., Proxy], app: App, neighbour: App
) -> None:
    """An HTTP/2 request takes a descriptor as a connection does: 100 connections with 100 each took half of all."""
    proxy = make_proxy(address_connections=40).start()
    host, other = proxy.open(app), proxy.open(neighbour)
    with contextlib.ExitStack() as kept:
        flood = [dial(Visitor(proxy.options.port)) for _ in range(3)]
        for connection in flood:
            kept.enter_context(connection.socket)
            for stream in range(1, 61, 2):
                # A body that never comes keeps the request open.
                connection.open(
                    stream, [*request(host, "/upload", method="POST"), (b"content-length", b"9")], ends=False
                )
            time.sleep(0.5)  # else a later connection may come first in the proxy, and take the share
        refused = [connection.finish(59) for connection in flood[1:]]
        assert all(answer.head and not answer.ok for answer in refused)
        # Refused while it is made, or closed before it is answered.
        with contextlib.suppress(ConnectionError), Visitor(proxy.options.port).dial() as newcomer:
            newcomer.sendall(b"GET")
            assert newcomer.recv(1) == b""
        assert from_address(proxy, "127.0.0.2", other) == 200
    # The share is free again once the proxy has seen the ends of the flood: until then it resets what comes.
    eventually(lambda: proxy.visitor.is_served(other))


def from_address(proxy: Proxy, address: str, host: str) -> int:
    """The status of an answer to a visitor with another address."""
    with socket.create_connection(("127.0.0.1", proxy.options.port), 10, (address, 0)) as connection:
        connection.sendall(f"GET /head HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return int(connection.makefile("rb").readline().split()[1])
