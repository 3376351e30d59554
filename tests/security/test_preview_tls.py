"""TLS of previews: what a handshake claims opens no other host, and one that never ends keeps no place."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
from tests.previews.certificates import write_certificate
from tests.previews.proxy import TOKEN, App, Proxy

from builderd.previews.haproxy.options import Timeouts

pytestmark = pytest.mark.haproxy

#: Against hanging only.
DEADLINE = 60


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    file = tmp_path_factory.mktemp("tls") / "preview.pem"
    write_certificate(file, "first")
    proxy = Proxy(certificate=file, timeouts=Timeouts(handshake=1))
    try:
        yield proxy.start()
    finally:
        proxy.close()


def ask(proxy: Proxy, name: str, *heads: str) -> list[tuple[int, bytes]]:
    """Send these requests over one connection whose handshake names this host; return the answers."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(proxy.visitor.dial(), server_hostname=name) as connection:
        answers = []
        for head in heads:
            connection.sendall(f"GET /head HTTP/1.1\r\n{head}\r\n\r\n".encode())
            answers.append(_answer(connection))
        return answers


def _answer(connection: socket.socket) -> tuple[int, bytes]:
    got = b""
    while b"\r\n\r\n" not in got:
        got += connection.recv(65536)
    head, _, body = got.partition(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < int(length.partition(b":")[2]):
        body += connection.recv(65536)
    return int(head.split()[1]), body


def test_the_name_in_the_handshake_opens_no_other_host(tls: Proxy, app: App, neighbour: App) -> None:
    """A browser that shares a connection between hosts of one certificate does this all the time."""
    public, private = tls.open(app), tls.open(neighbour, private=True)
    opened, refused, again, right = ask(
        tls,
        public,
        f"Host: {public}",
        f"Host: {private}",
        f"Host: {public}",
        f"Host: {private}\r\nX-Service-Token: {TOKEN}",
    )
    for (status, body), host in ((opened, public), (again, public), (right, private)):
        assert status == 200
        assert dict(json.loads(body)["headers"])["host"] == host
    assert refused[0] == 401
    assert b"unauthenticated" in refused[1]


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00", b"\x16\x03\x01\x00\x05hello"])
def test_a_handshake_that_never_ends_is_ended(tls: Proxy, app: App, sent: bytes) -> None:
    """Such a connection was kept for an hour, so that a few addresses took all connections."""
    host = tls.open(app)
    slow = [tls.visitor.dial() for _ in range(20)]
    for one in slow:
        one.settimeout(DEADLINE)
        one.sendall(sent)
    begun = time.monotonic()
    assert ask(tls, host, f"Host: {host}")[0][0] == 200
    for one in slow:
        with contextlib.suppress(ConnectionResetError):
            while one.recv(100):
                pass
        one.close()
    assert time.monotonic() - begun < DEADLINE
