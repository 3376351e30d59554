"""Visits: one request of a signed-in person, and what pages need of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote

from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from builderd.api.server.bodies import read_body
from builderd.api.server.limits import count_for_tenant, reject
from builderd.domain.builders import Builder
from builderd.domain.errors import BadRequest, Forbidden, NotFound, Unauthenticated
from builderd.domain.tokens import Scope, Session, Token
from builderd.operations.operations import Operations
from builderd.operations.rates import too_many
from builderd.services import sessions
from builderd.services.application import Application
from builderd.services.builders import Caller
from builderd.store import UnitOfWork
from builderd.web.cookies import session_secret
from builderd.web.policy import check_origin
from builderd.web.rendering import Renderer

T = TypeVar("T")

#: Forms are small; what is not (files, code) has a limit of its own.
MAX_FORM_BYTES = 2_500_000


@dataclass(frozen=True, slots=True)
class Visit:
    """A request with its session, token and tenant."""

    request: Request
    application: Application
    renderer: Renderer
    session: Session
    token: Token
    tenant: str
    now: datetime

    @property
    def operations(self) -> Operations:
        """Return the operations that the interfaces of this service share."""
        operations: Operations = self.request.app.state.operations
        return operations

    @property
    def caller(self) -> Caller:
        return Caller.of(self.token)

    @property
    def part(self) -> str:
        """Return the name of the region that is asked for alone, "" for the whole page."""
        return self.request.query_params.get("part", "")

    @property
    def allows_write(self) -> bool:
        return self.token.allows(Scope.WRITE)

    def allows(self, scope: Scope) -> bool:
        return self.token.allows(scope)

    def require(self, scope: Scope) -> None:
        """Raise ``Forbidden`` when the session's token lacks the scope."""
        if not self.token.allows(scope):
            raise Forbidden(f"This needs a token with the scope {scope}, and you are signed in without it.")

    async def is_good_still(self) -> bool:
        """Return whether the session is still valid, for answers that take a long time."""
        now = self.application.clock.now()
        return await self.read(lambda uow: sessions.is_good_still(uow, self.session, now))

    async def read(self, work: Callable[[UnitOfWork], T]) -> T:
        return await self.application.store.read(work)

    async def write(self, work: Callable[[UnitOfWork], T]) -> T:
        return await self.application.store.write(work)

    def builder(self, uow: UnitOfWork) -> Builder:
        """Return the builder that the path names. Raises ``NotFound``."""
        name = self.request.path_params["name"]
        found = uow.builders.by_name(self.token.tenant_id, name)
        if found is None:
            raise NotFound(f"You have no builder named {name!r}: it may have been deleted.")
        return found

    async def find(self) -> Builder:
        """Return the builder that the path names. Raises ``NotFound``."""
        return await self.read(self.builder)

    async def form(self) -> Form:
        return await read_form(self.request)

    async def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """Render a page, or the region of it that is asked for."""
        return await self.renderer.page(self, template, values, status)


class Form:
    """The fields of a form that was sent as ``application/x-www-form-urlencoded``."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs
        self._fields = dict(pairs)

    def text(self, name: str, otherwise: str = "") -> str:
        return self._fields.get(name, otherwise)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]

    def __contains__(self, name: str) -> bool:
        return name in self._fields


async def read_form(request: Request) -> Form:
    """Return the fields of the request's form. Raises ``BadRequest`` and ``TooLarge``."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await read_body(request, MAX_FORM_BYTES)
    if body.size and kind != "application/x-www-form-urlencoded":
        raise BadRequest("The form must be sent as application/x-www-form-urlencoded.")
    try:
        return Form(parse_qsl(body.read().decode(), keep_blank_values=True, errors="strict", max_num_fields=5_000))
    except ValueError as error:
        raise BadRequest("The form is no valid UTF-8, or has too many fields.") from error


Handler = Callable[[Visit], Awaitable[Response]]


def page(path: str, handler: Handler, *, post: bool = False, scope: Scope = Scope.READ) -> Route:
    """Return the route of a page for people who are signed in with this scope; with ``post``, of a change.

    A tenant's pages are made two at a time: they read and render as much as the lists of the API.
    """

    async def answer(request: Request) -> Response:
        check_origin(request)
        try:
            visit = await visit_of(request)
        except Unauthenticated:
            if request.method not in ("GET", "HEAD") or "hx-request" in request.headers:
                raise
            return to_sign_in(request)
        visit.require(scope)
        if post:
            return await handler(visit)
        operations: Operations = request.app.state.operations
        async with operations.pages.one(visit.token.tenant_id):
            return await handler(visit)

    return Route(path, answer, methods=["POST"] if post else ["GET"], name=handler.__name__)


def to_sign_in(request: Request) -> Response:
    """Send to the sign-in page, and from there back to this one."""
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    query = f"?next={quote(target, safe='')}" if target != "/builders" else ""
    return RedirectResponse(f"/sign-in{query}", 303)


async def visit_of(request: Request) -> Visit:
    """Return the visit of a valid session. Raises ``Unauthenticated`` and ``RateLimited``."""
    application: Application = request.app.state.application
    session, token, tenant, now = await recognized(request)
    return Visit(request, application, request.app.state.renderer, session, token, tenant, now)


async def recognized(connection: HTTPConnection) -> tuple[Session, Token, str, datetime]:
    """Return session, token and the tenant's name of a valid session cookie; its use is recorded now and then.

    Raises ``Unauthenticated``, and ``RateLimited`` when its requests come too often, or too many guesses do.
    """
    application: Application = connection.app.state.application
    operations: Operations = connection.app.state.operations
    rates = operations.rates
    secret = session_secret(application, connection)
    if secret is None:
        raise Unauthenticated("Sign in first.")
    now = application.clock.now()
    try:
        session, token, tenant = await application.store.read(lambda uow: _find(uow, secret, now))
    except Unauthenticated:
        reject(connection)
        rates.failed(connection.client.host if connection.client else "", secret)
        raise
    standing = rates.count(secret)
    if standing is not None and standing.retry_after is not None:
        raise too_many(standing)
    count_for_tenant(connection, token.tenant_id)
    if sessions.needs_touch(session, now):
        await operations.last_uses.record_session(session, now)
    return session, token, tenant, application.clock.now()


def _find(uow: UnitOfWork, secret: str, now: datetime) -> tuple[Session, Token, str]:
    session, token = sessions.authenticate(uow, secret, now)
    tenant = uow.tenants.get(token.tenant_id)
    return session, token, tenant.name if tenant else ""


def see_other(path: str, query: Mapping[str, str] | None = None) -> Response:
    """Send the browser to another page after a change."""
    text = "&".join(f"{name}={quote(value, safe='')}" for name, value in (query or {}).items())
    return RedirectResponse(path + (f"?{text}" if text else ""), 303)
