"""ASGI middleware: a short command in a running builder, answered without the framework and begun after one read.

It does for the call what the framework's dependencies do for all others. The row is read while the body arrives, and
used if the body is whole by then: what was read is no older than what any call reads. A body that comes later, a token
whose use was recorded in between, a stream, and all that is not plain goes on to the call itself.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from builderd.api.server import masking
from builderd.api.server.auth import IDENTITY, Identity, accept, application_of, recognize
from builderd.api.server.bodies import TINY_BYTES
from builderd.api.server.hot_reads import find_route, match_bearer
from builderd.api.server.problems import coded
from builderd.domain.errors import BuilderdError
from builderd.domain.ids import secret_hash
from builderd.domain.tokens import Scope
from builderd.ports.store import UnitOfWork
from builderd.ports.store.builder_reads import CommandRead
from builderd.services import tokens

#: Headers of a request that the call itself answers.
_COLD = frozenset({b"expect", b"transfer-encoding", masking.HEADER.lower().encode()})


@dataclass(frozen=True, slots=True)
class HotCommand:
    """A POST with one parameter. ``read`` gets the hash of the secret and the parameter, in a thread of the store.

    ``answer`` gets the whole body, and returns None for what the call itself must answer.
    """

    route: str
    path: re.Pattern[str]
    scope: Scope
    read: Callable[[UnitOfWork, str, str, datetime], CommandRead]
    answer: Callable[[Request, Identity, CommandRead, bytes], Awaitable[Response | None]]


class HotCommands:
    """ASGI middleware that answers one hot command."""

    def __init__(self, app: ASGIApp, hot: HotCommand) -> None:
        self._app = app
        self._hot = hot
        self._route: object = None

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        found = self._match(scope)
        if found is None:
            await self._app(scope, receive, send)
            return
        request, arrived = Request(scope), Arrived(receive)
        self._route = self._route or find_route(request, self._hot.route, "POST")
        scope["route"] = self._route
        try:
            response = await self._answer(request, arrived, *found)
        except BuilderdError as error:
            response = coded(request, error)
        if response is None:
            await self._app(scope, arrived.again, send)
        else:
            await response(scope, receive, send)

    def _match(self, scope: Connection) -> tuple[str, str] | None:
        """Return the parameter and the secret of a plain call with a short body."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["query_string"]:
            return None
        path = self._hot.path.fullmatch(scope["path"])
        if path is None:
            return None
        secret, size = match_bearer(scope["headers"], _COLD), b""
        for name, value in scope["headers"]:
            if name == b"content-length":
                size = value
        is_short = size.isdigit() and len(size) <= len(str(TINY_BYTES)) and int(size) <= TINY_BYTES
        return (path[1], secret) if secret is not None and is_short else None

    async def _answer(self, request: Request, arrived: Arrived, parameter: str, secret: str) -> Response | None:
        application = application_of(request)
        now, digest = application.clock.calendar(), secret_hash(secret)
        found = await recognize(
            request, secret, lambda: application.store.read(lambda uow: self._hot.read(uow, digest, parameter, now))
        )
        # The write of its last use may wait for others, and the row would be as old.
        is_fresh = not tokens.needs_touch(found.token, now)
        identity = await accept(request, found.token, now)
        identity.require(self._hot.scope)
        setattr(request.state, IDENTITY, identity)
        body = arrived.take() if is_fresh else None
        return None if body is None else await self._hot.answer(request, identity, found, body)


class Arrived:
    """The part of a request's body that has arrived."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: deque[Message] = deque()

    def take(self) -> bytes | None:
        """Return the whole body, None unless it has arrived."""
        body = bytearray()
        while len(body) <= TINY_BYTES:
            message = self._next()
            if message is None or message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            if not message.get("more_body"):
                return bytes(body)
        return None

    def _next(self) -> Message | None:
        """Receive a message that has arrived, None when it would have to be awaited."""
        # One step: what has arrived is returned without a wait.
        step = self._receive().__await__()
        try:
            next(step)
        except StopIteration as stop:
            message: Message = stop.value
            self._messages.append(message)
            return message
        step.close()
        return None

    async def again(self) -> Message:
        """Receive for the call itself: first what was taken."""
        return self._messages.popleft() if self._messages else await self._receive()
