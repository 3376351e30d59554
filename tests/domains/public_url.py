"""An API behind the real proxy, and its visitors."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from starlette.responses import StreamingResponse
from tests.previews.proxy import Proxy
from tests.previews.visitor import Answer, parse, read_all

from builderd.previews.haproxy.options import ProxyFiles
from builderd.previews.haproxy.process import worker_user
from builderd.server.limits import ConnectionLimits, Limiter
from builderd.server.listener import Servers

HOST, OURS = "builderd.example.test", "127.0.0.1"


def make_app() -> FastAPI:
    app = FastAPI()

    @app.get("/seen")
    async def seen(request: Request) -> dict[str, Any]:
        client = request.client
        return {"client": client.host if client else "", "scheme": request.url.scheme, "host": request.url.hostname}

    @app.post("/size")
    async def size(request: Request) -> dict[str, int]:
        return {"size": sum([len(piece) async for piece in request.stream()])}

    @app.get("/events")
    async def events() -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            yield "data: one\n\n"
            await asyncio.Event().wait()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @app.websocket("/api/v1/builders/x/terminal")
    async def terminal(websocket: WebSocket) -> None:
        await websocket.accept()
        client = websocket.client
        await websocket.send_text(f"{client.host if client else ''} {websocket.url.scheme}")
        await websocket.close()

    return app


@asynccontextmanager
async def served(tls: Proxy, limits: ConnectionLimits | None = None) -> AsyncIterator[None]:
    """The app behind the proxy, while this lasts."""
    async with Servers() as servers:
        path = ProxyFiles(tls.directory).api_socket
        await servers.add_behind_proxy(make_app(), path, worker_user(), Limiter(limits))
        yield


def while_served(tls: Proxy, visit: Callable[[], Any], limits: ConnectionLimits | None = None) -> Any:
    async def run() -> Any:
        async with served(tls, limits):
            return await asyncio.to_thread(visit)

    return tls.run(run())


def connect(tls: Proxy, name: str | None, source: str = OURS, alpn: str = "http/1.1") -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    raw = socket.create_connection((OURS, tls.options.tls_port or 0), 20, source_address=(source, 0))
    return context.wrap_socket(raw, server_hostname=name)


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        piece = connection.recv(4096)
        assert piece, f"closed after {received!r}"
        received += piece
    return received


def ask(tls: Proxy, request: str, name: str | None = HOST, source: str = OURS) -> Answer:
    with connect(tls, name, source) as connection:
        connection.sendall(request.encode())
        return parse(read_all(connection))


def get(path: str, host: str = HOST, *headers: str) -> str:
    return "\r\n".join((f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""))
