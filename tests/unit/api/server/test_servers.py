"""The servers of the service: what cannot be served is an error, and no port that nobody answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest

from builderd.api.server.limits import Limiter
from builderd.api.server.listener import Servers, bind
from builderd.domain.errors import EngineUnavailable


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
