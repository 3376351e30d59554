"""Every request has an id, a line in the log and a place in the counters."""

from __future__ import annotations

import asyncio
import logging
import re
import time

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from uvicorn.protocols.utils import ClientDisconnected

from builderd.api.server.answers import GUARDS
from builderd.api.server.meter import Meter
from builderd.api.server.problems import not_found, stopping, unexpected
from builderd.api.server.request_ids import HEADER, id_of, request_id

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


class RequestLog:
    """ASGI middleware, outermost: nothing that goes wrong further in gets past it unanswered."""

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self._app = app
        self._meter = meter

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
            if status == CLIENT_LEFT:
                await unexpected(error, request_id.get()).response()(scope, receive, stamp)
        finally:
            self._record(scope, status, time.perf_counter() - start)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # Percent-encoded, as it came: a line break in it cannot break the line. What follows the ? may be secret.
        path = _SECRET.sub(r"\1…", scope["raw_path"].decode("ascii", "replace")[:MAX_LOGGED_PATH])
        method = scope.get("method", "GET")
        logger.info("request method=%s path=%s status=%d ms=%.1f", method, path, status, seconds * 1000)
        self._meter.count(method, _route_of(scope), status, seconds)


def _stamp(scope: Scope, message: Message) -> None:
    headers = MutableHeaders(scope=message)
    headers[HEADER] = request_id.get()
    # How a token stands with its rate, once it is known.
    headers.update(scope.get("state", {}).get("rate_limit", {}))
    for name, value in GUARDS.items():
        headers.setdefault(name, value)


def _route_of(scope: Scope) -> str:
    """The path with its parameters as names, so that counters stay few; empty where no route took the request."""
    return getattr(scope.get("route"), "path", "")
