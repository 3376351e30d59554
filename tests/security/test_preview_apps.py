"""A hostile app: it reaches only its own visitors."""

from __future__ import annotations

import base64
import os
import re
import socket
import threading

import pytest
from tests.previews.proxy import App, Proxy, new_host
from tests.previews.visitor import Answer, read_until

from builderd.previews.model import Address, Route, RouteState

pytestmark = pytest.mark.haproxy


#: Longer than what a search goes back over; a header may have some 15 kB.
LONG = ("; x=" + "y" * 4000, "; x=" * 1000, f"; x={'y' * 1000}" * 8, ";" * 4000)


@pytest.mark.parametrize(
    ("cookie", "kept"),
    [
        ("a=b", "a=b"),
        ("a=b; Path=/; HttpOnly", "a=b; Path=/; HttpOnly"),
        ("a=b; Domain=localhost", "a=b"),
        ("a=b; Path=/; Domain=localhost; HttpOnly", "a=b; Path=/; HttpOnly"),
        ("a=b;domain=.localhost;Secure", "a=b;Secure"),
        ("a=b; DOMAIN = localhost", "a=b"),
        ("a=b;\tDoMaIn\t=\tlocalhost; Path=/", "a=b; Path=/"),
        ("a=b; Domain=x; Domain=localhost; HttpOnly", "a=b"),
        ("a=b; Domain=x; Path=/; Domain=y; Domain=localhost", "a=b; Path=/"),
        ("domain=mine; Path=/", "domain=mine; Path=/"),
        ("a=Domain=localhost; Path=/", "a=Domain=localhost; Path=/"),
        ("a=b; Domain", "a=b; Domain"),
        *((f"a=b; Domain=localhost{long}", f"a=b{long}") for long in LONG),
        *((f"a=b{long}; Domain=localhost", f"a=b{long}") for long in LONG),
        *((f"a=b{long}; Domain=x; Domain=localhost{long}", f"a=b{long}") for long in LONG[:2]),
    ],
)
def test_app_cookie_does_not_reach_sibling_previews(proxy: Proxy, app: App, cookie: str, kept: str) -> None:
    answer = say(proxy, app, f"HTTP/1.1 200 OK\r\nSet-Cookie: {cookie}\r\nContent-Length: 0\r\n\r\n")
    assert answer.status == 200
    assert answer.all("set-cookie") == [kept]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ('"cookies"', '"cache", "storage"'),
        ('"*"', '"cache", "storage"'),
        ('"storage", "COOKIES"', '"cache", "storage"'),
        ('"storage"', '"storage"'),
    ],
)
def test_app_cannot_clear_cookies_of_siblings(proxy: Proxy, app: App, said: str, kept: str) -> None:
    """A browser clears them for the whole site, tokens of private previews among them."""
    answer = say(proxy, app, f"HTTP/1.1 200 OK\r\nClear-Site-Data: {said}\r\nContent-Length: 0\r\n\r\n")
    assert answer.all("clear-site-data") == [kept]


def test_domain_attribute_is_removed_from_every_cookie(proxy: Proxy, app: App) -> None:
    cookies = "".join(f"Set-Cookie: c{number}=1; Domain=localhost; Path=/\r\n" for number in range(20))
    answer = say(proxy, app, f"HTTP/1.1 200 OK\r\n{cookies}Content-Length: 0\r\n\r\n")
    assert answer.all("set-cookie") == [f"c{number}=1; Path=/" for number in range(20)]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n\r\n",
        b"no http at all",
        b"HTTP/1.1",
        b"HTTP/1.1 200",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nraw bytes",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX y\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10_000_00 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=lambda raw: repr(raw[:40]),
)
def test_malformed_response_is_answered_with_a_page_that_says_so(proxy: Proxy, raw: bytes) -> None:
    with one_shot(raw) as port:
        host = proxy.put(Route(new_host(), RouteState.OPEN, Address("127.0.0.1", port))).host
        answer = proxy.visitor.browse(host)
    assert answer.status == 502
    assert "what it sent is not HTTP/1.1" in answer.text


@pytest.mark.parametrize("status", ["0", "99", "199", "600", "999", "1000"])
def test_unusual_status_does_not_desynchronize_a_shared_connection(proxy: Proxy, app: App, status: str) -> None:
    """Two apps answer over one connection: the second's answer must not be taken for the first's."""
    with one_shot(f"HTTP/1.1 {status} Strange\r\n\r\n".encode()) as port:
        host = proxy.put(Route(new_host(), RouteState.OPEN, Address("127.0.0.1", port))).host
        other = proxy.open(app)
        asked = (
            f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\nGET /head HTTP/1.1\r\nHost: {other}\r\nConnection: close\r\n\r\n"
        )
        received = proxy.visitor.exchange(asked.encode())
    finals = [found for found in re.findall(rb"HTTP/1\.1 (\d+)", received) if int(found) >= 200]
    assert b'"name": "app"' not in received or len(finals) == 2
    assert proxy.visitor.get(other).json["name"] == "app"


def test_extra_response_bytes_are_discarded(proxy: Proxy, app: App) -> None:
    """Bytes after the answer, on a connection that could be used again, must not answer the next request."""
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    with keeping(poison) as port:
        host = proxy.put(Route(new_host(), RouteState.OPEN, Address("127.0.0.1", port))).host
        other = proxy.open(app)
        for _ in range(10):
            assert proxy.visitor.get(host).body == b"ok"
            assert proxy.visitor.get(other).json["name"] == "app"


def test_app_errors_cannot_imitate_platform_errors(proxy: Proxy, app: App) -> None:
    answer = say(proxy, app, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nmine")
    assert (answer.status, answer.body) == (503, b"mine")


def test_endless_response_headers_do_not_slow_a_neighbour(proxy: Proxy, neighbour: App) -> None:
    ended = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_drip, args=(server, ended))
    thread.start()
    host = proxy.put(Route(new_host(), RouteState.OPEN, Address("127.0.0.1", server.getsockname()[1]))).host
    try:
        with proxy.visitor.dial() as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            for _ in range(50):
                assert proxy.visitor.get(proxy.open(neighbour)).status == 200
    finally:
        ended.set()
        thread.join()
        server.close()


def _drip(server: socket.socket, ended: threading.Event) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not ended.wait(0.01):
            try:
                connection.sendall(b"X: y\r\n")
            except OSError:
                return


def test_websocket_flood_does_not_grow_proxy_memory(proxy: Proxy, app: App) -> None:
    """The visitor does not read: what the app has to say waits in the app, not in the proxy."""
    from pathlib import Path

    from builderd.previews.haproxy import runtime_api

    info = proxy.run(runtime_api.ask(proxy.directory / "admin.sock", "show info"))
    pid = next(line.split(": ")[1] for line in info.splitlines() if line.startswith("Pid: "))

    def resident() -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    with flood() as port:
        host = proxy.put(Route(new_host(), RouteState.OPEN, Address("127.0.0.1", port))).host
        with proxy.visitor.dial() as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            read_until(connection, b"\r\n\r\n")
            assert proxy.visitor.get(proxy.open(app)).status == 200
            assert resident() - before < 20_000_000


def say(proxy: Proxy, app: App, raw: str) -> Answer:
    return proxy.visitor.browse(proxy.open(app), f"/raw?{base64.urlsafe_b64encode(raw.encode()).decode()}")


class _Server:
    """Answers every connection in the same way, from a thread."""

    def __init__(self, answer: bytes, *, keep: bool = False, endless: bool = False) -> None:
        self._answer, self._keep, self._endless = answer, keep, endless
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> int:
        self._thread.start()
        port: int = self._server.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for connection in self._open:
            connection.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while connection.recv(65_536):
                connection.sendall(self._answer)
                while self._endless:
                    connection.sendall(b"x" * 65_536)
                if not self._keep:
                    return
        except OSError:
            return
        finally:
            if not self._keep:
                connection.close()


def one_shot(answer: bytes) -> _Server:
    return _Server(answer)


def keeping(answer: bytes) -> _Server:
    return _Server(answer, keep=True)


def flood() -> _Server:
    return _Server(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n", endless=True)
