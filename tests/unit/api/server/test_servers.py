"""The servers of the service: what cannot be served is an error, and no port that nobody answers."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from tests.patience import patience
from uvicorn.importer import ImportFromStringError

from builderd.api.server import servers
from builderd.api.server.connections import ConnectionLimits, Connections
from builderd.api.server.fair_queue import Start
from builderd.api.server.servers import Servers, bind
from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import TenantId, secret_hash
from builderd.operations.proxy_header import SIGNATURE


async def _app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("nobody asks it")


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


async def test_a_server_that_cannot_start_is_an_error_and_gives_its_port_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(app: Any, _: Any) -> uvicorn.Config:
        return uvicorn.Config(app, ws="no_such_module:Protocol", lifespan="off", log_config=None)

    monkeypatch.setattr(servers, "server_config", lacking)
    port = _port()
    with pytest.raises(ImportFromStringError, match="no_such_module"):
        async with Servers() as some:
            await some.add(_app, "127.0.0.1", port, "--port")
    bind("127.0.0.1", port, "--port").close()


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


def test_port_in_use_is_reported_early_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{port}: .* another with inside_port"):
            bind("127.0.0.1", port, "inside_port", early=True)


#: In a network without an interface that is up: an address comes, goes and comes.
COMES_AND_GOES = """\
import socket, subprocess
from builderd.api.server.servers import bind
def ip(*words): subprocess.run(["ip", *words], check=True)
def reach():
    try:
        with socket.create_connection(("10.99.0.1", 8082), 5) as one:
            listener.accept()[0].close()
            return one.getsockname()[0]
    except OSError as error:
        return type(error).__name__
ip("link", "set", "lo", "up")
listener = bind("10.99.0.1", 8082, "inside_port", early=True)
seen = [reach()]
for word in ("add", "del", "add"):
    ip("link", word, "br9", *(["type", "bridge"] if word == "add" else []))
    if word == "add":
        ip("address", "add", "10.99.0.1/16", "dev", "br9")
        ip("link", "set", "br9", "up")
    seen.append(reach())
print(*seen)
"""


@pytest.mark.root
def test_early_listener_is_reached_whenever_its_address_is_there() -> None:
    command = ["unshare", "--net", sys.executable, "-c", COMES_AND_GOES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "OSError 10.99.0.1 OSError 10.99.0.1\n", done.stderr


async def test_a_proxy_that_sends_its_request_after_the_refusal_reads_the_refusal(tmp_path: Path) -> None:
    """Otherwise it tells the client of a bad gateway: it writes to a closed connection."""
    async with Servers() as some:
        await some.add_behind_proxy(_app, tmp_path / "api", None, Connections(ConnectionLimits(address=0, newcomers=0)))
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "api"))
        address = socket.inet_aton("192.0.2.1") + socket.inet_aton("127.0.0.1") + bytes(4)
        writer.write(SIGNATURE + b"\x21\x11" + len(address).to_bytes(2) + address)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 429 ")
        writer.write(b"GET / HTTP/1.1\r\nHost: builderd\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()


class Recorder:
    """ASGI app that notes the path of each request, and the iteration of the event loop in which it began."""

    def __init__(self) -> None:
        self.began: list[tuple[str, int]] = []
        self.iteration = 0
        self._tick()

    def _tick(self) -> None:
        self.iteration += 1
        self._ticking = asyncio.get_running_loop().call_soon(self._tick)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            self.began.append((scope["path"], self.iteration))
            await send({"type": "websocket.close"})
        elif scope["type"] == "http":
            self.began.append((scope["path"], self.iteration))
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

    async def wait_begun(self, count: int) -> None:
        while len(self.began) < count:
            await asyncio.sleep(0)

    def close(self) -> None:
        self._ticking.cancel()


OK = b"GET / HTTP/1.1\r\nHost: builderd\r\n\r\n"
KNOWN = b"GET /known HTTP/1.1\r\nHost: builderd\r\nAuthorization: Bearer known\r\n\r\n"
HANDSHAKE = (
    b"GET /api/v1/builders/a/terminal HTTP/1.1\r\nHost: builderd\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def test_limits_of_a_listener_are_those_that_were_given() -> None:
    app, port = Recorder(), _port()
    async with Servers() as some:
        await some.add(app, "127.0.0.1", port, "port", Connections(ConnectionLimits(address=0, newcomers=0)))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(OK)
        assert (await reader.read()).startswith(b"HTTP/1.1 429 ")
        writer.close()
        app.close()


async def test_connections_that_came_together_begin_one_in_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio accepts as many as its backlog: 2,048 connections in one iteration kept everybody waiting for 0.7 s."""
    app, port = Recorder(), _port()
    admitted: list[int] = []
    monkeypatch.setattr(Connections, "admit", lambda *_: admitted.append(app.iteration))
    async with Servers() as some:
        await some.add(app, "127.0.0.1", port, "port")
        # The kernel completes them while the event loop does something else.
        made = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
        for one in made:
            one.sendall(OK)
        async with asyncio.timeout(patience(30)):
            while len(admitted) < 300:
                await asyncio.sleep(0)
        assert len(set(admitted)) == 300
        for one in made:
            one.close()
        app.close()


@pytest.mark.parametrize("flood", [OK, HANDSHAKE], ids=["request", "handshake"])
async def test_requests_that_came_together_start_one_in_an_iteration(flood: bytes) -> None:
    app, port = Recorder(), _port()
    async with Servers() as some:
        await some.add(app, "127.0.0.1", port, "port")
        made = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        async with asyncio.timeout(patience(30)):
            for request in (OK, flood):
                app.began.clear()
                for one in made:
                    one.sendall(request)
                await app.wait_begun(40)
        assert len({iteration for _, iteration in app.began}) == 40
        for one in made:
            one.close()
        app.close()


async def test_handshake_that_waits_for_its_turn_gives_way_to_newcomers() -> None:
    """And its client reads why."""
    counted, app, port = Connections(ConnectionLimits(address=2, newcomers=0)), Recorder(), _port()
    held: list[Start] = []
    counted.starts.enter = lambda *words: held.append(words[-1])  # type: ignore[method-assign]
    async with Servers() as some:
        await some.add(app, "127.0.0.1", port, "port", counted)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer guess\r\n\r\n"))
        await _held(held, 1)
        others = [await _ask(port, OK, held) for _ in range(2)]
        assert (await reader.readline()).startswith(b"HTTP/1.1 429 ")
        assert not held[0]()
        for one in (writer, *(one for _, one in others)):
            one.close()
        app.close()
    assert not app.began


async def test_request_with_a_valid_token_that_waits_for_its_turn_keeps_its_connection() -> None:
    """Strangers behind its address would throw it out."""
    counted, app, port = Connections(ConnectionLimits(address=2, newcomers=0)), Recorder(), _port()
    counted.starts.learn(secret_hash("known"), TenantId("acme"))
    held: list[Start] = []
    counted.starts.enter = lambda *words: held.append(words[-1])  # type: ignore[method-assign]
    async with Servers() as some:
        await some.add(app, "127.0.0.1", port, "port", counted)
        reader, writer = await _ask(port, KNOWN, held)
        others = [await _ask(port, OK, held) for _ in range(5)]
        assert held[0]()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        for one in (writer, *(one for _, one in others)):
            one.close()
        app.close()
    assert [path for path, _ in app.began] == ["/known"]


async def _ask(port: int, request: bytes, held: list[Start]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send it on a connection of its own, and wait until it waits for its turn."""
    before = len(held)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await _held(held, before + 1)
    return reader, writer


async def _held(held: list[Start], count: int) -> None:
    async with asyncio.timeout(patience(30)):
        while len(held) < count:
            await asyncio.sleep(0)
