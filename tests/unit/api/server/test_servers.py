"""The servers of the service: what cannot be served is an error, and no port that nobody answers."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import uvicorn
from uvicorn.importer import ImportFromStringError

from builderd.api.server import servers
from builderd.api.server.servers import Servers, bind
from builderd.domain.errors import EngineUnavailable


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
