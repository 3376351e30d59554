"""The servers of the service: what cannot be served is an error, and no port that nobody answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.importer import ImportFromStringError

from builderd.api.server import listener
from builderd.api.server.limits import Limiter
from builderd.api.server.listener import Servers, bind
from builderd.domain.errors import EngineUnavailable


async def _app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("nobody asks it")


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


async def test_a_server_that_cannot_start_is_an_error_and_gives_its_port_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(app: Any, *_: Any) -> uvicorn.Config:
        return uvicorn.Config(app, ws="no_such_module:Protocol", lifespan="off", log_config=None)

    monkeypatch.setattr(listener, "server_config", lacking)
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
from builderd.api.server.listener import bind
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
