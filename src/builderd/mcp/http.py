"""``POST /mcp`` on the service: stateless streamable HTTP, with the API's tokens, scopes and limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from fastapi import FastAPI
from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from builderd import AsyncBuilderd
from builderd.api.server import masking
from builderd.api.server.auth import CLIENT, identity_of
from builderd.api.server.bodies import read_body
from builderd.api.server.request_ids import HEADER as REQUEST_ID
from builderd.domain import tokens
from builderd.domain.errors import Unauthenticated
from builderd.mcp.in_process import InProcess
from builderd.operations.operations import Operations

PATH = "/mcp"
#: Largest message. Larger code comes by an upload link.
MAX_BODY_BYTES = 4_000_000


class McpEndpoint:
    """Endpoint ``/mcp``. Use it in a ``with`` block: its calls are cut off at the end.

    The library is imported, and the server made, at the first call: its import takes as long as the rest of the
    service's start.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._manager: Any = None
        self._starting = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        # A route of its own: a mount would answer /mcp with a redirect.
        app.router.routes.append(Route(PATH, endpoint=self, methods=["POST"], include_in_schema=False))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._running:
            await self._running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a message of a caller whose token may read. Errors before it are those of the API."""
        request = Request(scope, receive)
        identity = await identity_of(request, _secret(request))
        identity.require(tokens.Scope.READ, "The MCP server")
        operations: Operations = self._app.state.operations
        with operations.held_bytes.holding(identity.token.tenant_id) as holding:
            body = await read_body(request, MAX_BODY_BYTES, holding)
            manager = await self._ready()
            # RFC 9110, 5.5: white space around a value is no part of it. The HTTP parser leaves that behind it.
            headers = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
            await manager.handle_request({**scope, "headers": headers}, _replayed(body.read(), receive), send)

    async def _ready(self) -> Any:
        async with self._starting:
            if self._manager is None:
                module = await asyncio.to_thread(import_module, "builderd.mcp.server")
                server = module.make_server(self._connect)
                server.streamable_http_app(
                    stateless_http=True,
                    max_request_body_size=MAX_BODY_BYTES,
                    # A browser's page elsewhere has no token, and the host's name is the operator's choice.
                    transport_security=module.no_host_check(),
                )
                self._manager = server.session_manager
                started = asyncio.Event()
                self._running = asyncio.create_task(self._run(started))
                await started.wait()
        return self._manager

    async def _run(self, started: asyncio.Event) -> None:
        async with self._manager.run():
            started.set()
            await self._stopping.wait()

    @asynccontextmanager
    async def _connect(self, context: Any) -> AsyncIterator[AsyncBuilderd]:
        """Open the API for the token of the HTTP request that carries the message."""
        request: Request = context.request_context.request
        calls = import_module("builderd.mcp.calls")
        client = (request.client.host, request.client.port) if request.client else None
        headers = {
            CLIENT: calls.client_name(context),
            masking.HEADER: masking.VALUE,
            REQUEST_ID: request.scope.get("state", {}).get("request_id", ""),
        }
        async with AsyncBuilderd(
            str(request.base_url),
            _secret(request),
            max_retries=0,
            headers=headers,
            transport=InProcess(self._app, client),
        ) as opened:
            yield opened


def _secret(request: Request) -> str:
    scheme, secret = get_authorization_scheme_param(request.headers.get("authorization"))
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated("Send your API token with the header Authorization: Bearer <token>.")
    return secret


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that begins with the whole body, which was read already."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again
