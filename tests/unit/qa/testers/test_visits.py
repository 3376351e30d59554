"""Visits: what an app answers is read within limits; a request that could not be sent is no answer of the app's."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import pytest

from builderd.core.errors import MachineFault
from builderd.previews.model import Address
from builderd.qa.port import Target
from builderd.qa.testers.visits import ALL_HEADS_BYTES, HEAD_BYTES, PREFACE, is_shell, visit

NOBODY = Target(Address("127.0.0.1", 1), "http://app.localhost")


async def test_refused_connection_is_the_apps_failure() -> None:
    assert (await visit(NOBODY, "/", 5)).fault == "the connection was refused"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
async def test_unsendable_request_is_a_machine_fault(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    class Exhausted(socket.socket):
        def connect(self, _address: object) -> None:
            raise OSError(number, "exhausted")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Exhausted)
        with pytest.raises(MachineFault):
            await visit(NOBODY, "/", 5)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (bytes((0, 0, 6, 4, 0, 0, 0, 0, 0)) + bytes(6), ""),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 'does not speak HTTP/2 without TLS (its answer begins with "HTTP/1.1 ")'),
        (b"\x1b[31m\r\nbad!!", r'begins with "\x1b[31m\r\nba"'),
        (b"", "it closed the connection"),
    ],
)
async def test_app_of_http2_is_asked_for_its_settings(answer: bytes, fault: str) -> None:
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readexactly(len(PREFACE)))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await visit(Target(Address("127.0.0.1", port), "http://app.localhost", h2c=True), "/", 5)
    assert asked == [PREFACE]
    assert (found.status, fault in found.fault) == (None if fault else 200, True)


@asynccontextmanager
async def app(
    *answers: Iterable[bytes], asked: list[bytes] | None = None, is_open: bool = False
) -> AsyncIterator[Target]:
    """Serve these pieces to each request, then end the connection, unless it stays open until the client ends it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if asked is not None:
            asked.append(head)
        with suppress(ConnectionError):
            for piece in itertools.chain.from_iterable(answers):
                writer.write(piece)
                await writer.drain()
            if is_open:
                await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Target(Address("127.0.0.1", server.sockets[0].getsockname()[1]), "https://app.example.org:8443/")


@pytest.mark.parametrize(
    ("answer", "status", "excerpt"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, ""),
        (b"HTTP/1.0 200\r\n\r\nuntil the end", 200, ""),
        (b"\r\nHTTP/1.2 302 OK\nA: b\r\nLocation: /in\r\n\nok", 302, ""),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 500 No\r\n\r\nno", 200, ""),
        (b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nwhyHTTP/1.1 500 No\r\n\r\nno", 500, "why"),
        (b"HTTP/1.1 500 No\r\n\r\n\r\n\nwhy", 500, "\r\n\nwhy"),
        (b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nwhy\r\n1\r\n!\r\n0\r\n\r\n", 500, "why!"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 900\r\n\r\n" + b"a" * 900, 500, "a" * 300),
        (b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\ncut", 500, "cut"),
    ],
)
@pytest.mark.parametrize("piece", [1 << 20, 1])
async def test_answer_is_read_in_whatever_pieces_it_comes(answer: bytes, status: int, excerpt: str, piece: int) -> None:
    pieces = [answer[at : at + piece] for at in range(0, len(answer), piece)]
    async with app(pieces) as target:
        found = await visit(target, "/", 5)
    assert (found.status, found.fault, found.excerpt) == (status, "", excerpt)


@pytest.mark.parametrize(
    ("page", "shell"),
    [
        ("<div id=root></div><script src=a.js></script>", True),
        ("<title>App</title><noscript>Enable <b>it</b></noscript><!-- a --><SCRIPT\n>if (a<b) x()</script>\n", True),
        ("<div id=root>Loading</div><script src=a.js></script>", False),
        ("<script>x</script><canvas id=game></canvas>", False),
        ("<div id=root></div>", False),
        ("<script>" + "<script" * 5000, True),
    ],
)
async def test_page_shows_nothing_before_its_scripts_have_run(page: str, shell: bool) -> None:
    assert is_shell(page) is shell
    async with app([b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page.encode()]) as target:
        assert (await visit(target, "/", 5)).is_shell is shell


@pytest.mark.parametrize(
    ("location", "led_to", "status"),
    [
        ("/login?next=/", "/login?next=/", 404),
        ("login", "/login", 404),
        ("http://app.localhost/x", "/x", 404),
        ("https://elsewhere.example/", "", 302),
        ("https://app.localhost/", "", 302),
        ("/a\x1bb", "", 302),
        ("http://[", "", 302),
    ],
)
async def test_redirect_is_followed_within_the_app(location: str, led_to: str, status: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        to = f"302 Found\r\nLocation: {location}" if head.startswith(b"GET / ") else "404 Not Found"
        writer.write(f"HTTP/1.1 {to}\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await visit(Target(Address("127.0.0.1", port), "http://app.localhost"), "/", 5)
    assert (found.status, found.led_to) == (status, led_to)


async def test_endless_redirect_ends() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        writer.write(f"HTTP/1.1 307 On\r\nLocation: {path}a\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await visit(Target(Address("127.0.0.1", port), "http://app.localhost"), "/", 5)
    assert (found.status, found.led_to) == (307, "/aaaaaa")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error": "no database"}', True),
        (b'{"success": false}', True),
        (b'{"status": "error", "message": "x"}', True),
        (b'{"errors": [], "data": 1}', False),
        (b'{"status": "ok"}', False),
        (b'["error"]', False),
        (b"not JSON", False),
        (b"[" * 10_000, False),
    ],
)
async def test_json_with_the_shape_of_an_error_is_noted(body: bytes, error: bool) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    async with app([head + body]) as target:
        assert bool((await visit(target, "/", 5)).error) is error


async def test_first_line_of_another_protocol_is_no_http_answer() -> None:
    """A server of SSH waits for its client after its first line."""
    async with app([b"SSH-2.0-OpenSSH_10.0\r\n"], is_open=True) as target:
        found = await visit(target, "/", 5)
    assert found.fault == 'what it sent is no HTTP answer: it begins with "SSH-2.0-OpenSSH_10.0"'


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"", "the connection ended without an HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "(it ended before the end of a head)"),
        (b"\x1b[31m", r'what it sent is no HTTP answer: it begins with "\x1b[31m"'),
        (b"HTTP/1.1 two hundred\r\n\r\n", "what it sent is no HTTP answer"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n\0\0", "status 101"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "(it ended before the end of a head)"),
    ],
)
async def test_connection_without_an_answer_is_a_fault_of_the_app(answer: bytes, fault: str) -> None:
    async with app([answer]) as target:
        found = await visit(target, "/", 5)
    assert (found.status, fault in found.fault) == (None, True), found.fault


@pytest.mark.parametrize(
    ("begin", "piece", "most"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-Header: " + b"x" * 50_000 + b"\r\n", HEAD_BYTES),
        (b"HTTP/1.1 200 ", b"O" * 50_000, HEAD_BYTES),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: " + b"x" * 10_000 + b"\r\n\r\n", ALL_HEADS_BYTES),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000, ALL_HEADS_BYTES),
        (b"", b"\r\n" * 10_000, ALL_HEADS_BYTES),
    ],
)
async def test_endless_head_is_left_after_its_limit(begin: bytes, piece: bytes, most: int) -> None:
    sent = 0

    def endless() -> Iterable[bytes]:
        nonlocal sent
        yield begin
        while True:
            sent += len(piece)
            yield piece

    async with app(endless()) as target:
        found = await visit(target, "/", 30)
    assert found.fault == f"its answer's head is longer than {most} bytes"
    assert sent < 50_000_000


async def test_app_that_says_nothing_is_given_up_in_time() -> None:
    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        target = Target(Address("127.0.0.1", server.sockets[0].getsockname()[1]), "http://app.localhost")
        assert (await visit(target, "/", 0.2)).fault == "nothing came within 0 seconds"
        for writer in writers:
            writer.close()


async def test_request_is_the_previews() -> None:
    asked: list[bytes] = []
    async with app([b"HTTP/1.1 200 OK\r\n\r\n"], asked=asked) as target:
        await visit(target, "/", 5)
    lines = asked[0].decode().split("\r\n")
    assert lines[0] == "GET / HTTP/1.1"
    assert {"Host: app.example.org:8443", "X-Forwarded-Proto: https", "Connection: close"} <= set(lines)
