"""ASGI middleware: the read that is called most often, answered without the framework and by one transaction.

It does for the call what the framework's dependencies do for all others: rate limit, token, scope, connection limit,
the tenant's turn. What is not plain, such as a large answer or another method, goes on to the call itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from builderd.api.server import masking
from builderd.api.server.auth import IDENTITY, accept, application_of, operations_of, recognize
from builderd.api.server.known_tenants import KnownTenants
from builderd.api.server.problems import coded
from builderd.domain.errors import BuilderdError, Unauthenticated
from builderd.domain.ids import secret_hash
from builderd.domain.tokens import Scope, Token
from builderd.ports.store import UnitOfWork
from builderd.services.application import Application

_BEARER = re.compile(rb"bearer (\S+)", re.IGNORECASE)
#: Headers of a request that the call itself answers.
COLD = frozenset({masking.HEADER.lower().encode()})


@dataclass(frozen=True, slots=True)
class HotAnswer:
    """A valid token, and the JSON of the answer, or the error to raise once the caller is known; neither: unhandled."""

    token: Token
    body: bytes | None = None
    error: BuilderdError | None = None


@dataclass(frozen=True, slots=True)
class HotRead:
    """A GET with one parameter. ``read`` gets the hash of the secret and the parameter, in a thread of the store."""

    route: str
    path: re.Pattern[str]
    scope: Scope
    read: Callable[[UnitOfWork, Application, str, str, datetime], HotAnswer]


class HotReads:
    """ASGI middleware that answers one hot read."""

    def __init__(self, app: ASGIApp, hot: HotRead, tenants: KnownTenants) -> None:
        self._app = app
        self._hot = hot
        self._tenants = tenants
        self._route: object = None

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        found = self._match(scope)
        response = await self._answer(Request(scope), *found) if found is not None else None
        await (self._app if response is None else response)(scope, receive, send)

    def _match(self, scope: Connection) -> tuple[str, str] | None:
        """Return the parameter and the secret of a plain hot read."""
        if scope["type"] != "http" or scope["method"] != "GET" or scope["query_string"]:
            return None
        path = self._hot.path.fullmatch(scope["path"])
        if path is None:
            return None
        secret = match_bearer(scope["headers"], COLD)
        return (path[1], secret) if secret is not None else None

    async def _answer(self, request: Request, parameter: str, secret: str) -> Response | None:
        self._route = request.scope["route"] = self._route or find_route(request, self._hot.route, "GET")
        try:
            return await self._read(request, parameter, secret)
        except BuilderdError as error:
            return coded(request, error)

    async def _read(self, request: Request, parameter: str, secret: str) -> Response | None:
        """Return the answer; None to have the call itself made, for the caller that was identified."""
        now = application_of(request).clock.calendar()
        found = await recognize(request, secret, lambda: self._look(request, parameter, secret_hash(secret), now))
        identity = await accept(request, found.token, now)
        identity.require(self._hot.scope)
        if found.error is not None:
            raise found.error
        if found.body is None:
            setattr(request.state, IDENTITY, identity)
            return None
        return Response(found.body, media_type="application/json")

    async def _look(self, request: Request, parameter: str, digest: str, now: datetime) -> HotAnswer:
        """Read in the turn of the tenant that the token had lately. Raises ``Unauthenticated``."""
        application = application_of(request)
        tenant_id = self._tenants.get(digest)
        turn = operations_of(request).lists.one(tenant_id) if tenant_id is not None else nullcontext()
        try:
            async with turn:
                found = await application.store.read(
                    lambda uow: self._hot.read(uow, application, digest, parameter, now)
                )
        except Unauthenticated:
            # A token that is no longer valid takes no more turns of its tenant.
            self._tenants.forget(digest)
            raise
        self._tenants.remember(digest, found.token.tenant_id)
        return found


def match_bearer(headers: Iterable[tuple[bytes, bytes]], cold: Container[bytes]) -> str | None:
    """Return the secret of the one bearer token; None too if there is a header of these ``cold`` names."""
    secret = None
    for name, value in headers:
        if name == b"authorization":
            secret = secret or _BEARER.fullmatch(value)
            if secret is None:
                return None
        elif name in cold:
            return None
    return secret[1].decode("latin-1") if secret is not None else None


def find_route(request: Request, path: str, method: str) -> object:
    """Return the call's route, by whose path the request is counted."""
    routes = (route for route in request.app.routes if getattr(route, "path", "") == path)
    return next(route for route in routes if method in getattr(route, "methods", ()))
