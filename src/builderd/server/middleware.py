"""ASGI middleware: request id, log and counters of each request; HEAD; masking of credentials."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from uvicorn.protocols.utils import ClientDisconnected

from builderd.application import Application
from builderd.core.errors import (
    BuilderdError,
    EngineUnavailable,
    MachineFault,
    NotFound,
    StoreUnavailable,
    ValidationFailed,
    machine_fault,
)
from builderd.credentials import service as credentials
from builderd.credentials.model import Masker
from builderd.schemas.shape import Failure, field_errors_in
from builderd.server.answers import GUARDS, HEADER, Answer, failure, id_of, request_id
from builderd.server.meter import Meter

logger = logging.getLogger(__name__)

#: Message that begins an answer of any kind.
STARTS = ("http.response.start", "websocket.http.response.start", "websocket.accept")
#: The status of a WebSocket that was opened.
SWITCHED = 101
#: The status that is logged and counted when the client left before there was an answer.
CLIENT_LEFT = 499
MAX_LOGGED_PATH = 200
#: Codes of one-time links, which are valid until they are spent.
_SECRET = re.compile(r"^(/sign-in/once/).+")


#: Makes the response to an unexpected error.
ErrorPage = Callable[[Request, Exception], Awaitable[Response]]


class RequestLog:
    """ASGI middleware, outermost: nothing that goes wrong further in gets past it unanswered.

    ``page`` makes the response to an unexpected error of a request; by default it is in JSON.
    """

    def __init__(self, app: ASGIApp, meter: Meter, page: ErrorPage | None = None) -> None:
        self._app = app
        self._meter = meter
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        token = request_id.set(id_of(scope))
        # For handlers further in, which must not import this file.
        scope.setdefault("state", {})["request_id"] = request_id.get()
        try:
            await self._answer(scope, receive, send)
        finally:
            request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        status = CLIENT_LEFT

        async def stamp(message: Message) -> None:
            nonlocal status
            if message["type"] in STARTS:
                status = message.get("status", SWITCHED)
                _stamp(scope, message)
            elif message["type"] == "websocket.close" and status == CLIENT_LEFT:
                # No route took it: by itself the listener would answer 403 and say nothing.
                await not_found().response()(scope, receive, stamp)
                return
            await send(message)

        try:
            await self._app(scope, receive, stamp)
        except (ClientDisconnect, ClientDisconnected, WebSocketDisconnect):
            pass
        except asyncio.CancelledError:
            # The listener ends, and with it the calls that wait for an outcome.
            if status == CLIENT_LEFT:
                await stopping().response()(scope, receive, stamp)
        except Exception as error:
            logger.exception("request failed: unexpected error")
            if status == CLIENT_LEFT and self._page is not None and scope["type"] == "http":
                await (await self._page(Request(scope, receive), error))(scope, receive, stamp)
            elif status == CLIENT_LEFT:
                await unexpected(error, request_id.get()).response()(scope, receive, stamp)
        finally:
            self._record(scope, status, time.perf_counter() - start)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # Percent-encoded, as it came: a line break in it cannot break the line. What follows the ? may be secret.
        path = _SECRET.sub(r"\1…", scope["raw_path"].decode("ascii", "replace")[:MAX_LOGGED_PATH])
        method = scope.get("method", "GET")
        logger.info("request method=%s path=%s status=%d ms=%.1f", method, path, status, seconds * 1000)
        # The path with its parameters as names, so that counters stay few; empty where no route took the request.
        self._meter.count(method, getattr(scope.get("route"), "path", ""), status, seconds)


def _stamp(scope: Scope, message: Message) -> None:
    headers = MutableHeaders(scope=message)
    headers[HEADER] = request_id.get()
    # How a token stands with its rate, once it is known.
    headers.update(scope.get("state", {}).get("rate_limit", {}))
    for name, value in GUARDS.items():
        headers.setdefault(name, value)


class HeadSent(Exception):
    """Raised into the application once the head of the answer was sent, so that it makes no body."""


class HeadAsGet:
    """ASGI middleware that answers HEAD for every path with GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or "HEAD" not in allowed_methods(Request(scope)):
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            # The listener looks here to leave the body out, and the log to name the method.
            scope["method"] = "HEAD"
            await send(message)
            await send({"type": "http.response.body"})
            raise HeadSent

        scope["method"] = "GET"
        try:
            await self._app(scope, receive, send_head)
        except HeadSent:
            pass
        finally:
            scope["method"] = "HEAD"


#: Header of the request that asks for it, and its only value.
MASK_HEADER, MASK_VALUE = "Builderd-Mask", "credentials"
#: Beginnings of media types in which no text can be found: pictures, compressed archives.
OPAQUE = ("image/", "application/zstd")
#: Bytes of a JSON document that are collected; a longer one is masked as text, while it is sent.
MAX_DOCUMENT = 16_000_000
EVENTS = "text/event-stream"


class Masking:
    """Mask the values of the tenant's credentials in everything that is answered with ``Builderd-Mask: credentials``.

    A JSON document is collected before it is masked, an event stream is masked event by event (so a command's output
    must not be streamed where its secrets matter), and all else while it is sent.
    """

    def __init__(self, app: ASGIApp, application: Application) -> None:
        self._app = app
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or Headers(scope=scope).get(MASK_HEADER) != MASK_VALUE:
            await self._app(scope, receive, send)
            return
        await self._app(scope, receive, _MaskedAnswer(self._application, scope, send))


class _MaskedAnswer:
    """The ``send`` of one request."""

    def __init__(self, application: Application, scope: Scope, send: Send) -> None:
        self._application = application
        self._scope = scope
        self._send = send
        self._masker = Masker(())
        self._type = ""
        self._held = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
            return
        if message["type"] != "http.response.body" or not self._masker:
            await self._send(message)
            return
        self._held += message.get("body", b"")
        more = message.get("more_body", False)
        async for piece in self._pieces(last=not more):
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        if not more:
            await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        self._type = headers.get("content-type", "")
        if not self._type.startswith(OPAQUE):
            self._masker = await self._make_masker()
        if self._masker:
            del headers["content-length"]
        await self._send(message)

    async def _make_masker(self) -> Masker:
        tenant_id, vault = self._scope.get("state", {}).get("tenant_id"), self._application.vault
        if tenant_id is None:
            return Masker(())
        return Masker(await self._application.store.read(lambda uow: credentials.all_values(uow, vault, tenant_id)))

    async def _pieces(self, *, last: bool) -> AsyncIterator[bytes]:
        if self._type.startswith(EVENTS):
            *events, rest = bytes(self._held).split(b"\n\n")
            self._held = bytearray(rest)
            for event in events:
                yield b"\n".join(self._line(line) for line in event.split(b"\n")) + b"\n\n"
        elif "json" not in self._type or len(self._held) > MAX_DOCUMENT:
            self._type = ""  # a document that was too long goes on as text
            if not last:
                masked, rest = self._masker.beginning(bytes(self._held))
                self._held = bytearray(rest)
                yield masked
        if last and self._held:
            body, self._held = bytes(self._held), bytearray()
            mask = self._json if "json" in self._type else self._masker.data
            yield await asyncio.to_thread(mask, body)

    def _line(self, line: bytes) -> bytes:
        field, colon, value = line.partition(b": ")
        return field + colon + self._json(value) if field == b"data" else line

    def _json(self, text: bytes) -> bytes:
        try:
            document = json.loads(text)
        except ValueError:
            return self._masker.data(text)
        return json.dumps(self._masker.document(document), ensure_ascii=False, separators=(",", ":")).encode()


class MethodNotAllowed(BuilderdError):
    """The path exists, but not with this method."""

    code = "method_not_allowed"


def install(app: FastAPI) -> None:
    """Have the app answer every error in the envelope."""
    app.add_exception_handler(BuilderdError, _coded)
    app.add_exception_handler(RequestValidationError, _parameters)
    app.add_exception_handler(HTTPException, _routing)


def unexpected(error: Exception, request_id: str) -> Answer:
    """Answer 503 for a fault of the machine, else 500; the log has the exception under the same request id."""
    fault = machine_fault(error)
    if fault is not None:
        return failure(fault, request_id)
    message = f"Something went wrong in the service. Its log tells more under the request id {request_id}."
    body = Failure(code=BuilderdError.code, message=message)
    return Answer(500, body.model_dump(mode="json"))


def stopping() -> Answer:
    """Return the answer for calls that still wait for an outcome when the service ends."""
    message = "The service is stopping. What was begun goes on: look at it, or repeat the call with its retry key."
    return failure(EngineUnavailable(message, retry_after=5))


def not_found() -> Answer:
    """Return the answer for an unknown path."""
    return failure(NotFound("There is no such call: GET /docs shows those that there are."))


async def _coded(request: Request, error: Exception) -> Response:
    """Return the response to an error of the contract."""
    assert isinstance(error, BuilderdError)
    in_log = isinstance(error, MachineFault | StoreUnavailable)
    return failure(error, request.state.request_id if in_log else None).response()


async def _parameters(_: Request, error: Exception) -> Response:
    """Query parameters that break a rule; their paths are their names alone, without ``query.``"""
    assert isinstance(error, RequestValidationError)
    return failure(ValidationFailed(field_errors_in(error.errors(), skip=1))).response()


async def _routing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code != 405:
        return not_found().response()
    methods = ", ".join(sorted(allowed_methods(request)))
    response = failure(MethodNotAllowed(f"{request.method} is not for this path, which takes {methods}.")).response()
    response.headers["Allow"] = methods
    return response


def allowed_methods(request: Request) -> set[str]:
    """The methods of all routes of this path; the framework's own answer names those of the first alone."""
    matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    # /builders/spending is no builder, though it looks like one's path.
    exact = [route for route in matching if getattr(route, "path", "") == request.url.path]
    methods = {method for route in exact or matching for method in getattr(route, "methods", None) or ()}
    return methods | {"HEAD"} if "GET" in methods else methods
