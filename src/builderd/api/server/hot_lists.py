"""ASGI middleware: a plain list, answered without the framework, its page read in one transaction with the token.

It does for the call what the framework's dependencies do for all others. The tenant's turn comes before the read, so
the tenant has to be known: the first list of a token goes on to the call itself, as does all that is not plain.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from builderd.api.server.auth import recognize
from builderd.api.server.hot_reads import COLD, find_route, match_bearer
from builderd.api.server.known_tenants import KnownTenants
from builderd.api.server.problems import coded
from builderd.domain.errors import BuilderdError, Unauthenticated
from builderd.domain.ids import TenantId, secret_hash

Q = TypeVar("Q")
T = TypeVar("T")

#: A query without escapes and without empty values.
_PLAIN = re.compile(rb"[a-z_]+=[A-Za-z0-9._-]+(?:&[a-z_]+=[A-Za-z0-9._-]+)*")
#: Longest query that is looked at, in bytes.
MAX_QUERY = 400


@dataclass(frozen=True, slots=True)
class PresumedCaller:
    """Secret of a call, and the tenant of its token when that was last valid: for nothing but a place in a queue."""

    request: Request
    secret: str
    tenant_id: TenantId
    _tenants: KnownTenants

    async def recognize(self, look: Callable[[], Awaitable[T]]) -> T:
        """Return what ``look`` finds by the secret, as ``auth.recognize`` does."""
        return await recognize(self.request, self.secret, lambda: self._look(look))

    async def _look(self, look: Callable[[], Awaitable[T]]) -> T:
        try:
            return await look()
        except Unauthenticated:
            # A token that is no longer valid takes no more turns of its tenant.
            self._tenants.forget(secret_hash(self.secret))
            raise


@dataclass(frozen=True, slots=True)
class HotList(Generic[Q]):
    """A list at a path without parameters. ``parse`` returns None for a query that the call itself refuses."""

    route: str
    parse: Callable[[Mapping[str, str]], Q | None]
    answer: Callable[[PresumedCaller, Q], Awaitable[Response]]


class HotLists(Generic[Q]):
    """ASGI middleware that answers one hot list."""

    def __init__(self, app: ASGIApp, hot: HotList[Q], tenants: KnownTenants) -> None:
        self._app = app
        self._hot = hot
        self._tenants = tenants
        self._route: object = None

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        secret = self._match(scope)
        if secret is None:
            await self._app(scope, receive, send)
            return
        tenant_id = self._tenants.get(secret_hash(secret))
        asked = self._parse(scope["query_string"]) if tenant_id is not None else None
        if tenant_id is not None and asked is not None:
            response = await self._answer(PresumedCaller(Request(scope), secret, tenant_id, self._tenants), asked)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)
        if (identified := scope["state"].get("tenant_id")) is not None:
            self._tenants.remember(secret_hash(secret), identified)

    def _match(self, scope: Connection) -> str | None:
        """Return the secret of a call of the list."""
        if scope["type"] != "http" or scope["path"] != self._hot.route or scope["method"] != "GET":
            return None
        return match_bearer(scope["headers"], COLD)

    def _parse(self, query: bytes) -> Q | None:
        """Return what a plain query asks for."""
        if len(query) > MAX_QUERY or (query and _PLAIN.fullmatch(query) is None):
            return None
        values: dict[str, str] = {}
        for pair in query.decode("ascii").split("&") if query else ():
            name, _, value = pair.partition("=")
            if name in values:
                return None
            values[name] = value
        return self._hot.parse(values)

    async def _answer(self, caller: PresumedCaller, asked: Q) -> Response:
        request = caller.request
        self._route = request.scope["route"] = self._route or find_route(request, self._hot.route, "GET")
        try:
            return await self._hot.answer(caller, asked)
        except BuilderdError as error:
            return coded(request, error)
