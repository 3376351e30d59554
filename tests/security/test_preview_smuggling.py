"""Request smuggling: proxy and app agree on every request; ambiguous ones are rejected or normalized."""

from __future__ import annotations

import pytest
from tests.previews.proxy import App, Proxy
from tests.previews.visitor import Answer, parse

pytestmark = pytest.mark.haproxy

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: %s\r\n\r\n"

FRAMINGS = {
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "a list of lengths": b"Content-Length: 5, 6\r\n",
    "a signed length": b"Content-Length: +5\r\n",
    "a negative length": b"Content-Length: -5\r\n",
    "a hexadecimal length": b"Content-Length: 0x5\r\n",
    "a length with a blank in it": b"Content-Length: 5 5\r\n",
    "a length of nothing": b"Content-Length:\r\n",
    "an enormous length": b"Content-Length: 99999999999999999999999\r\n",
    "an unknown coding": b"Transfer-Encoding: xchunked\r\n",
    "chunked not last": b"Transfer-Encoding: chunked, identity\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "a blank before the colon": b"Transfer-Encoding : chunked\r\n",
    "a folded line": b"Transfer-Encoding:\r\n chunked\r\n",
    "a tab before chunked": b"Transfer-Encoding:\tchunked\r\n",
    "a control byte before chunked": b"Transfer-Encoding: \x0bchunked\r\n",
    "a bare line feed": b"X: y\nTransfer-Encoding: chunked\n",
    "length and chunked": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 50\r\n",
    "chunked in HTTP/1.0": b"Transfer-Encoding: chunked\r\n",
}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_smuggled_request_does_not_reach_the_app(proxy: Proxy, app: App, framing: str) -> None:
    """The app answers with what it saw: every request that reaches it came with what the proxy adds."""
    host = proxy.open(app).encode()
    version = b"HTTP/1.0" if "1.0" in framing else b"HTTP/1.1"
    head = b"POST /head %s\r\nHost: %s\r\n%s\r\n" % (version, host, FRAMINGS[framing])
    for body in (b"0\r\n\r\n", b"12345"):
        closing = b"GET /last HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host
        for answer in _conversation(proxy, head + body + SMUGGLED % host + closing):
            assert answer.status in (200, 400, 408, 501)
            if answer.status == 200:
                assert answer.seen["x-forwarded-for"] == ["127.0.0.1"]
                assert not (answer.seen.get("content-length") and answer.seen.get("transfer-encoding"))


@pytest.mark.parametrize("framing", ["length and chunked", "chunked and length"])
def test_conflicting_framing_headers_reach_the_app_as_one(proxy: Proxy, app: App, framing: str) -> None:
    host = proxy.open(app).encode()
    head = b"POST /upload HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n" % (host, FRAMINGS[framing])
    answer = proxy.visitor.send(head + b"3\r\nabc\r\n0\r\n\r\n")
    assert answer.status in (200, 400)
    if answer.status == 200:
        assert answer.json["size"] == 3
        assert "content-length" not in answer.seen


@pytest.mark.parametrize(
    "chunk",
    [
        b"-1\r\na\r\n",
        b"0x1\r\na\r\n",
        b"ffffffffffffffffff\r\na\r\n",
        b"\r\na\r\n",
        b"z\r\na\r\n",
        b"1\r\nab\r\n",
        b"1 1\r\na\r\n",
    ],
)
def test_broken_chunk_ends_the_request(proxy: Proxy, app: App, chunk: bytes) -> None:
    host = proxy.open(app).encode()
    head = b"POST /upload HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" % host
    answers = _conversation(proxy, head + chunk + b"0\r\n\r\n" + SMUGGLED % host)
    assert [answer.status for answer in answers] in ([400], [502])
    assert proxy.visitor.get(host.decode()).status == 200


@pytest.mark.parametrize(
    "first",
    [
        *(
            b"GET  /head HTTP/1.1",
            b"GET /head  HTTP/1.1",
            b"GET /he ad HTTP/1.1",
            b"GET\t/head\tHTTP/1.1",
            b"GET /head",
        ),
        *(
            b"GET /head HTTP/1.2",
            b"GET /head HTTP/0.9",
            b"GET /head HTTP/2.0",
            b"GET /head http/1.1",
            b"G\0T /head HTTP/1.1",
        ),
        *(
            b"GET head HTTP/1.1",
            b"GET /head\0 HTTP/1.1",
            b"GET /head\x7f HTTP/1.1",
            b"GET /head\xff HTTP/1.1",
            b"\r\n\r\n",
        ),
        *(b"G<T /head HTTP/1.1", b"GET /head#x HTTP/1.1", b"get /head HTTP/1.1", b"GET /head HTTP/1.1 HTTP/1.1"),
    ],
)
def test_malformed_request_line_is_rejected_or_stays_one_request(proxy: Proxy, app: App, first: bytes) -> None:
    host = proxy.open(app).encode()
    for answer in _conversation(proxy, b"%s\r\nHost: %s\r\nConnection: close\r\n\r\n" % (first, host)):
        assert answer.status in (200, 400, 404, 405, 505)
        if answer.status == 200:
            assert answer.json["first"].count(" ") == 2


def test_h2c_upgrade_does_not_open_a_tunnel(proxy: Proxy, app: App) -> None:
    answer = proxy.visitor.send(
        b"GET /head HTTP/1.1\r\nHost: %s\r\nConnection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n" % proxy.open(app).encode()
    )
    assert answer.status == 200
    assert not {"upgrade", "http2-settings"} & answer.seen.keys()


def test_body_of_a_get_is_not_a_second_request(proxy: Proxy, app: App) -> None:
    host = proxy.open(app).encode()
    hidden = SMUGGLED % host
    head = b"GET /head HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (host, len(hidden))
    answers = _conversation(proxy, head + hidden)
    assert len(answers) == 1
    assert answers[0].json["size"] == len(hidden)


def _conversation(proxy: Proxy, sent: bytes) -> list[Answer]:
    """All answers on one connection, after which the visitor hangs up; none for what is dropped in silence."""
    import socket

    with proxy.visitor.dial() as connection:
        connection.sendall(sent)
        connection.settimeout(1.0)
        received = b""
        try:
            while part := connection.recv(65_536):
                received += part
        except TimeoutError:
            # It waits for the rest of a body that never comes.
            connection.shutdown(socket.SHUT_RDWR)
        except ConnectionError:
            pass
    return list(_split(received))


def _split(received: bytes) -> list[Answer]:
    answers = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = int(parse(head + b"\r\n\r\n").header("content-length") or len(rest))
        answers.append(parse(head + b"\r\n\r\n" + rest[:length]))
        received = rest[length:]
    return answers
