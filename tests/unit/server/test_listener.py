"""The listener against clients that are slow, large, or speak something else; and ports that cannot be served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.fakes.sandboxes import Behaviour
from tests.service import MINIMAL, Service, listening

from builderd.core.errors import EngineUnavailable
from builderd.server import listener
from builderd.server.limits import Limiter
from builderd.server.listener import Servers, bind

OK = b"GET /healthz HTTP/1.1\r\nHost: builderd\r\n\r\n"


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], dict[str, object]]:
        """Status, headers and body of the next answer."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self._reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, json.loads(body)

    async def ended(self) -> bool:
        """Return True if the service closes the connection without a further word."""
        return await self._reader.read() == b""

    async def close(self) -> None:
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)


class Door:
    def __init__(self, url: str) -> None:
        self._place = urlsplit(url)
        self._open: list[Connection] = []

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection(self._place.hostname, self._place.port))
        self._open.append(connection)
        return connection

    async def close(self) -> None:
        for connection in self._open:
            await connection.close()


@pytest.fixture
async def door(service: Service) -> AsyncIterator[Door]:
    async with listening(service.app) as url:
        opened = Door(url)
        yield opened
        await opened.close()


async def test_a_head_that_does_not_end_is_hung_up_on(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.05)
    connection = await door.connect()
    await connection.send(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
    status, headers, body = await connection.answer()
    assert (status, body["code"], headers["connection"]) == (400, "bad_request", "close")
    assert await connection.ended()


async def test_a_head_that_drips_is_hung_up_on(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.05)
    connection = await door.connect()
    dripping = asyncio.create_task(_drip(connection))
    assert (await connection.answer())[0] == 400
    dripping.cancel()


async def _drip(connection: Connection) -> None:
    await connection.send(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
    while True:
        await connection.send(b"x")
        await asyncio.sleep(0.005)


async def test_a_connection_that_says_nothing_is_closed(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.05)
    assert await (await door.connect()).ended()


async def test_a_long_answer_is_not_cut_off_by_the_heads_deadline(
    door: Door, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.3)
    real = service.previews.ready

    async def slow() -> bool:
        await asyncio.sleep(0.5)
        return await real()

    monkeypatch.setattr(service.previews, "ready", slow)
    connection = await door.connect()
    await connection.send(OK.replace(b"healthz", b"readyz"))
    assert (await connection.answer())[0] == 200


@pytest.mark.parametrize("head", [b"X-Big: " + b"x" * 10_000_000, b"X: y\r\n" * 1_000_000], ids=["one", "many"])
async def test_a_head_that_is_too_large_is_refused(door: Door, head: bytes) -> None:
    connection = await door.connect()
    sending = asyncio.create_task(connection.send(b"GET /healthz HTTP/1.1\r\n" + head))
    status, _, body = await connection.answer()
    assert (status, body["code"]) == (413, "too_large")
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-x\r\n", b"\0\0\0\0"])
async def test_other_protocol_gets_an_envelope(door: Door, data: bytes) -> None:
    connection = await door.connect()
    await connection.send(data)
    status, headers, body = await connection.answer()
    assert (status, body["code"]) == (400, "bad_request")
    assert headers["x-request-id"]
    assert await connection.ended()


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: -1",
        b"Content-Length: 5 ",
        b"Transfer-Encoding : chunked",
    ],
)
async def test_two_readings_of_one_request_are_refused(door: Door, service: Service, framing: bytes) -> None:
    """Request smuggling: what a proxy in front might read otherwise."""
    token = f"Authorization: Bearer {service.write}\r\n".encode()
    connection = await door.connect()
    await connection.send(
        b"POST /api/v1/builders HTTP/1.1\r\nHost: a\r\n" + token + framing + b"\r\n\r\n0\r\n\r\n" + OK
    )
    status, _, body = await connection.answer()
    assert (status, body["code"]) == (400, "bad_request")


async def test_a_body_of_unknown_length_ends_the_connection(door: Door) -> None:
    connection = await door.connect()
    await connection.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + OK)
    assert await connection.ended()


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
async def test_the_offer_of_another_protocol_is_passed_over(door: Door, protocol: bytes) -> None:
    connection = await door.connect()
    for _ in range(2):
        await connection.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n"))
        assert (await connection.answer())[0] == 200


async def test_client_that_keeps_sending_reads_its_rejection(
    door: Door, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "LINGER_SECONDS", 0.3)
    token = f"Authorization: Bearer {service.write}\r\nContent-Type: application/json\r\n".encode()
    connection = await door.connect()
    head = b"POST /api/v1/builders HTTP/1.1\r\nHost: a\r\n" + token + b"Content-Length: 99000000\r\n\r\n"
    await connection.send(head + bytes(5_000_000))
    status, _, body = await connection.answer()
    assert (status, body["code"]) == (413, "too_large")
    await connection.send(bytes(5_000_000))
    assert await connection.ended()


async def test_a_refused_client_that_goes_on_sending_is_hung_up_on(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "REFUSED_SECONDS", 0.05)
    refused = await door.connect()
    await refused.send(b"no HTTP\r\n\r\n")
    assert (await refused.answer())[0] == 400

    async def send_for_ever() -> None:
        while True:
            await refused.send(OK * 100)
            await asyncio.sleep(0.001)

    with pytest.raises(ConnectionError):
        await send_for_ever()


async def test_a_refused_client_that_reads_nothing_lingers_no_longer(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transport that is only closed waits until the client has read what was written before."""
    monkeypatch.setattr(listener, "REFUSED_SECONDS", 0.05)
    monkeypatch.setattr(listener, "_whole", lambda _: b"x" * 20_000_000)
    async with listening(service.app) as url:
        place = urlsplit(url)
        with socket.create_connection((place.hostname or "", place.port or 0)) as refused:
            refused.sendall(b"no HTTP\r\n\r\n")
            with pytest.raises(ConnectionError):
                await send_for_ever(refused)


async def send_for_ever(connection: socket.socket) -> None:
    """Send until the connection is gone, and read nothing."""
    while True:
        connection.sendall(OK)
        await asyncio.sleep(0.01)


async def test_waiting_calls_are_answered_when_the_service_stops(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "GRACE_SECONDS", 0.1)
    service.engine.behave(MINIMAL["entrypoint"], Behaviour(listens_at=None))
    async with listening(service.app) as url:
        waiting = asyncio.create_task(service.client(service.write, url).post("/api/v1/builders", json=MINIMAL))
        while not service.engine.known:
            await asyncio.sleep(0.005)
    response = await waiting
    assert (response.status_code, response.json()["code"]) == (503, "engine_unavailable")
    assert "goes on" in response.json()["message"]


async def _app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("nobody asks it")


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


async def test_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        async with Servers() as some:
            with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{port}: .* another with metrics_port"):
                await some.add(_app, "127.0.0.1", port, "metrics_port")


def test_address_that_the_machine_does_not_have_is_bound_only_early() -> None:
    with pytest.raises(EngineUnavailable, match=r"192\.0\.2\.1:0: Cannot assign requested address"):
        bind("192.0.2.1", 0, "inside_port")
    bind("192.0.2.1", 0, "inside_port", early=True).close()


async def test_header_of_a_proxy_is_believed_from_the_proxy_alone(tmp_path: Path) -> None:
    clients = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        clients.append((*scope["client"], scope["scheme"]))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    request = b"GET / HTTP/1.1\r\nHost: builderd\r\nConnection: close\r\n\r\n"

    claimed = b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 443\r\n" + request
    port, path = _port(), tmp_path / "api"
    async with Servers() as some:
        await some.add(app, "127.0.0.1", port, "port")
        await some.add_behind_proxy(app, path, None, Limiter())
        assert (await _answer(*await asyncio.open_connection("127.0.0.1", port), claimed)).startswith(b"HTTP/1.1 400 ")
        assert (await _answer(*await asyncio.open_unix_connection(path), claimed)).startswith(b"HTTP/1.1 200 ")
        assert await _answer(*await asyncio.open_unix_connection(path), request) == b""
    assert clients == [("192.0.2.1", 4711, "https")]


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    writer.write(request)
    with contextlib.suppress(ConnectionError):
        return await reader.readline()
    return b""
