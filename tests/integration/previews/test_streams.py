"""WebSockets, event streams and uploads pass through unbuffered."""

from __future__ import annotations

import hashlib
import socket
import threading

import pytest
from tests.previews import http2
from tests.previews.proxy import TOKEN, App, Proxy
from tests.previews.visitor import PATIENCE, ask, parse, read_all, read_until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

pytestmark = pytest.mark.haproxy


def test_a_websocket_echoes(proxy: Proxy, app: App) -> None:
    with dial(proxy, proxy.open(app)) as connection:
        for text in ("hello", "x" * 10_000, "€"):
            connection.send(text)
            assert connection.recv(timeout=PATIENCE) == text


def test_a_private_websocket_opens_to_its_token(proxy: Proxy, app: App) -> None:
    host = proxy.open(app, private=True)
    with pytest.raises(InvalidStatus) as refused:
        dial(proxy, host)
    assert refused.value.response.status_code == 401
    for entry in ({"X-Service-Token": TOKEN}, {"Cookie": f"builderd_service_token={TOKEN}"}):
        with dial(proxy, host, headers=entry) as connection:
            connection.send("in")
            assert connection.recv(timeout=PATIENCE) == "in"
    with dial(proxy, host, path=f"/websocket?service_token={TOKEN}") as connection:
        connection.send("in")
        assert connection.recv(timeout=PATIENCE) == "in"


def test_a_websocket_over_http2_echoes(proxy: Proxy, app: App) -> None:
    """Browsers open them this way where a page came over HTTP/2 (RFC 8441).

    A client sends nothing before the answer (RFC 6455, 4.1): HAProxy answers 500 where frames come with the handshake.
    """
    handshake = (
        (b":protocol", b"websocket"),
        (b"sec-websocket-version", b"13"),
        (b"origin", b"http://example.com"),
    )
    connection = http2.dial(proxy.visitor)
    with connection.socket:
        headers = http2.request(proxy.open(app), "/websocket", method="CONNECT")
        connection.open(1, [*headers[:4], *handshake], ends=False)
        assert connection.finish(1, head_only=True).ok
        connection.send(http2.DATA, 0, 1, b"\x81\x82\0\0\0\0hi" + b"\x88\x80\0\0\0\0")
        answer = connection.finish(1)
    assert answer.ok
    assert answer.body == b"\x81\x02hi\x88\x00"


def test_an_event_arrives_before_the_next_is_sent(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    with proxy.visitor.dial() as stream, proxy.visitor.dial() as other:
        stream.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        for number in range(20):
            read_until(stream, f"data: {number}\n\n\r\n".encode())
            ask(other, host, "/tick")


def test_an_upload_reaches_the_app_while_it_is_sent(proxy: Proxy, app: App) -> None:
    """The app answers 100 when it sees the head of the request, long before the body is complete."""
    host = proxy.open(app)
    with proxy.visitor.dial() as connection:
        head = f"POST /upload HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 10\r\n"
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100")
        connection.sendall(b"0123456789")
        assert parse(read_all(connection)).json["size"] == 10


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_upload_arrives_whole(proxy: Proxy, app: App, chunked: bool) -> None:
    host, part, count = proxy.open(app), b"0123456789abcdef" * 4096, 512
    with proxy.visitor.dial() as connection:
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(part) * count}"
        connection.sendall(f"POST /upload HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{framing}\r\n\r\n".encode())
        sender = threading.Thread(target=_send, args=(connection, part, count, chunked))
        sender.start()
        answer = parse(read_all(connection))
        sender.join()
    assert answer.json["size"] == len(part) * count
    assert answer.json["sha256"] == hashlib.sha256(part * count).hexdigest()


def _send(connection: socket.socket, part: bytes, count: int, chunked: bool) -> None:
    for _ in range(count):
        connection.sendall(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
    if chunked:
        connection.sendall(b"0\r\n\r\n")


def dial(proxy: Proxy, host: str, path: str = "/websocket", headers: dict[str, str] | None = None) -> ClientConnection:
    return connect(
        f"ws://{host}{path}",
        sock=proxy.visitor.dial(),
        additional_headers=headers,
        open_timeout=PATIENCE,
        proxy=None,
    )
