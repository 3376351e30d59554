"""``POST /mcp`` on the service: stateless streamable HTTP, with the API's tokens, scopes and limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, Self

import httpx2
from fastapi import FastAPI
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from builderd import AsyncBuilderd
from builderd.server import middleware
from builderd.server.answers import HEADER as REQUEST_ID
from builderd.server.auth import CLIENT, bearer_secret, identity_of
from builderd.server.bodies import read_body
from builderd.server.operations import Operations
from builderd.tokens import model as tokens

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

    async def __aexit__(self, *_: object) -> None:
        self._stopping.set()
        if self._running:
            await self._running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a message of a caller whose token may read. Errors before it are those of the API."""
        request = Request(scope, receive)
        identity = await identity_of(request, await bearer_secret(request))
        identity.require(tokens.Scope.READ, "The MCP server")
        operations: Operations = self._app.state.operations
        with operations.memory.reserve(identity.token.tenant_id) as reservation:
            body = await read_body(request, MAX_BODY_BYTES, reservation)
            manager = await self._ready()
            # RFC 9110, 5.5: white space around a value is no part of it. The HTTP parser leaves that behind it.
            headers = [(name, value.strip(b" \t")) for name, value in scope["headers"]]
            await manager.handle_request({**scope, "headers": headers}, _replayed(body.read(), receive), send)

    async def _ready(self) -> Any:
        async with self._starting:
            if self._manager is None:
                module = await asyncio.to_thread(import_module, "builderd.mcp.server")
                security = import_module("mcp.server.transport_security")
                server = module.make_server(self._connect)
                server.streamable_http_app(
                    stateless_http=True,
                    max_request_body_size=MAX_BODY_BYTES,
                    # A browser's page elsewhere has no token, and the host's name is the operator's choice.
                    # Without these settings the library accepts only loopback's names.
                    transport_security=security.TransportSecuritySettings(enable_dns_rebinding_protection=False),
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
            middleware.MASK_HEADER: middleware.MASK_VALUE,
            REQUEST_ID: request.scope.get("state", {}).get("request_id", ""),
        }
        async with AsyncBuilderd(
            str(request.base_url),
            await bearer_secret(request),
            max_retries=0,
            headers=headers,
            transport=InProcess(self._app, client),
        ) as opened:
            yield opened


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that begins with the whole body, which was read already."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


#: An agent that calls many tools at once does not see that the service takes them one after the other.
PAUSES, PAUSE_SECONDS = 2, 5.0
#: Pieces of an answer that wait for their reader.
AHEAD = 8
#: Calls that go on after their reader has left, such as a deployment.
_running: set[asyncio.Task[None]] = set()


class InProcess(httpx2.AsyncBaseTransport):
    """Transport to an ASGI app. ``client`` is the address that the app sees.

    Each call runs in a task of its own. A caller that is cancelled disconnects from it, as over a network, and never
    cancels it: what was begun is recorded whole.
    """

    def __init__(self, app: Any, client: tuple[str, int] | None = None) -> None:
        self._app = app
        self._client = client

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the answer when its head has been sent. A refusal that ends within moments is waited for."""
        for _ in range(PAUSES):
            response = await self._answer(request)
            pause = _pause_of(response)
            if pause is None:
                return response
            await response.aclose()
            await asyncio.sleep(pause)
        return await self._answer(request)

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        exchange = _Exchange(await request.aread())
        task = asyncio.create_task(exchange.run(self._app, self._scope(request)))
        _running.add(task)
        task.add_done_callback(_running.discard)
        try:
            start = await asyncio.shield(exchange.start)
        except asyncio.CancelledError:
            exchange.leave()
            raise
        return httpx2.Response(start["status"], headers=start.get("headers", []), stream=exchange)

    def _scope(self, request: httpx2.Request) -> Mapping[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.partition(b"?")[0],
            "query_string": request.url.query,
            "server": (request.url.host, request.url.port),
            "client": self._client,
            "root_path": "",
            "state": {},
        }


def _pause_of(response: httpx2.Response) -> float | None:
    """Return the seconds after which a call that was refused unread can be repeated, as one of too many at once."""
    after = response.headers.get("retry-after", "")
    if response.status_code not in {429, 503} or not (after.isascii() and after.isdecimal()):
        return None
    return float(after) if float(after) <= PAUSE_SECONDS else None


class _Exchange(httpx2.AsyncByteStream):
    """One request and its answer, whose body is read from it as it arrives."""

    def __init__(self, body: bytes) -> None:
        self.start: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._request: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(AHEAD)
        self._left = asyncio.Event()

    async def run(self, app: Any, scope: Mapping[str, Any]) -> None:
        """Call the app. An error after the head ends the answer early, one before it is the caller's."""
        try:
            await app(dict(scope), self._receive, self._send)
        except Exception as error:
            if not self.start.done():
                self.start.set_exception(httpx2.RemoteProtocolError(str(error) or type(error).__name__))
        finally:
            if not self.start.done():
                self.start.set_exception(httpx2.RemoteProtocolError("the call ended without an answer"))
            if self._left.is_set():
                self.start.exception()  # no one else reads it
            else:
                await self._pieces.put(None)

    def leave(self) -> None:
        """Disconnect: the app is notified, and nothing it sends is kept."""
        self._left.set()
        while not self._pieces.empty():
            self._pieces.get_nowait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            yield piece

    async def aclose(self) -> None:
        self.leave()

    async def _receive(self) -> Message:
        if self._request is not None:
            message, self._request = self._request, None
            return message
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if not self.start.done():
                self.start.set_result(message)
        elif message.get("body") and not self._left.is_set():
            await self._pieces.put(bytes(message["body"]))
