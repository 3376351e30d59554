"""Visits: one request of a signed-in person, what pages need of it, and templates to answers.

Everything that is put into a template is escaped; nothing from outside is marked as safe.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.runtime import Context
from starlette.datastructures import ImmutableMultiDict
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from builderd.application import Application
from builderd.builders.model import Builder
from builderd.builders.service import Caller
from builderd.core.errors import BadRequest, Forbidden, NotFound, Unauthenticated
from builderd.core.ids import TenantId
from builderd.database.unit_of_work import UnitOfWork
from builderd.money import caps
from builderd.money.caps import CapView
from builderd.server.auth import recognize
from builderd.server.bodies import read_body
from builderd.server.limits import count_for_tenant
from builderd.server.operations import Operations
from builderd.sessions import service as sessions
from builderd.tokens.model import Scope, Session, Token
from builderd.web import shown
from builderd.web.policy import SESSION, Assets, check_origin
from builderd.web.shown import MESSAGES, event_text

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


#: The fields of a form that was sent as ``application/x-www-form-urlencoded``.
Form = ImmutableMultiDict[str, str]


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


#: Renders a block of a template.
Region = Callable[[Context], Iterator[str]]

HTML = "text/html; charset=utf-8"
#: Shorter answers are not worth compressing.
LEAST_PACKED = 1_000
#: Level of the compression: 60 KB take a millisecond.
LEVEL = 5
#: Age of the frame's figures, in seconds.
FRAME_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Frame:
    """Figures that every page shows: the month's spending, and the number of builders."""

    made_at: float
    month: CapView
    builders: int


class Renderer:
    """The templates, and the page frame around them."""

    def __init__(self, application: Application, assets: Assets) -> None:
        self._application = application
        self._frames: dict[TenantId, Frame] = {}
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters.update(shown.FILTERS, event_text=event_text)
        prices = application.prices
        self._templates.globals.update(asset=assets.url, currency=prices.currency, shows_money=prices.shown)

    async def page(self, visit: Visit, template: str, values: Mapping[str, Any], status: int) -> Response:
        """Render a page with its frame; with ``visit.part``, only the region of this name, a block of the template."""
        request = visit.request
        context = {
            "p": self._templates.get_template("parts.html").module,
            "visit": visit,
            "token": visit.token,
            "tenant": visit.tenant,
            "now": visit.now,
            "can_write": visit.allows(Scope.WRITE),
            "is_operator": visit.allows(Scope.OPERATOR),
            "path": request.url.path,
            "query": request.query_params,
            "message": MESSAGES.get(request.query_params.get("done", "")),
            **values,
        }
        found = self._templates.get_template(template)
        region = self._region(template, visit.part)
        if region is not None:
            text = "".join(region(found.new_context(context)))
        else:
            text = found.render(frame=await self._frame(visit), **context)
        return await compressed(request, text.encode(), status)

    def _region(self, template: str, part: str) -> Region | None:
        """Return the function that renders the region: a block of the template, or of one that it extends."""
        for name in (template, "builder.html") if part else ():
            if part in (blocks := self._templates.get_template(name).blocks):
                return blocks[part]
        return None

    async def _frame(self, visit: Visit) -> Frame:
        """Return the frame's figures, at most ``FRAME_SECONDS`` old: with 10,000 builders they take a while to sum."""
        kept = self._frames.get(visit.token.tenant_id)
        if kept is not None and time.monotonic() - kept.made_at <= FRAME_SECONDS:
            return kept

        def look(uow: UnitOfWork) -> Frame:
            tenant = visit.token.tenant_id
            month = caps.view_of_tenant(uow, visit.application, tenant, visit.now)
            return Frame(time.monotonic(), month, sum(uow.builders.count_by_status(tenant).values()))

        made = self._frames[visit.token.tenant_id] = await visit.read(look)
        return made

    async def plain(self, request: Request, template: str, values: Mapping[str, Any], status: int = 200) -> Response:
        """Render a page without the frame of a signed-in person."""
        parts = self._templates.get_template("parts.html").module
        text = self._templates.get_template(template).render(p=parts, path=request.url.path, **values)
        return await compressed(request, text.encode(), status)


async def compressed(request: Request, body: bytes, status: int = 200, media_type: str = HTML) -> Response:
    """Return an answer with this body, gzipped for a client that takes it."""
    headers = {"Vary": "Accept-Encoding, Cookie"}
    if len(body) >= LEAST_PACKED and "gzip" in request.headers.get("accept-encoding", ""):
        body = await asyncio.to_thread(gzip.compress, body, LEVEL)
        headers["Content-Encoding"] = "gzip"
    return Response(body, status, headers, media_type)


Handler = Callable[[Visit], Awaitable[Response]]


#: Routes of all pages, filled by the decorators below when the pages are imported.
ROUTES: list[BaseRoute] = []
H = TypeVar("H", bound=Callable[..., Awaitable[Any]])


def route(path: str, *, post: bool = False) -> Callable[[H], H]:
    """Make a function that takes the request the answer to a path."""

    def register(handler: H) -> H:
        ROUTES.append(Route(path, handler, methods=["POST"] if post else ["GET"]))
        return handler

    return register


def page(path: str, *, post: bool = False, scope: Scope = Scope.READ) -> Callable[[Handler], Handler]:
    """Make a function a page for people who are signed in with this scope; with ``post``, a change.

    A tenant's pages are made two at a time: they read and render as much as the lists of the API.
    """

    def register(handler: Handler) -> Handler:
        route(path, post=post)(partial(_answer, handler, post, scope))
        return handler

    return register


async def _answer(handler: Handler, post: bool, scope: Scope, request: Request) -> Response:
    check_origin(request)
    try:
        visit = await visit_of(request)
    except Unauthenticated:
        if request.method not in ("GET", "HEAD") or "hx-request" in request.headers:
            raise
        # To the sign-in page, and from there back to this one.
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return see_other("/sign-in", **({"next": target} if target != "/builders" else {}))
    visit.require(scope)
    if post:
        return await handler(visit)
    operations: Operations = request.app.state.operations
    async with operations.pages.one(visit.token.tenant_id):
        return await handler(visit)


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
    secret = SESSION.get(application, connection)
    if secret is None:
        raise Unauthenticated("Sign in first.")
    now = application.clock.now()
    session, token, tenant = await recognize(
        connection, secret, lambda: application.store.read(lambda uow: _find(uow, secret, now))
    )
    count_for_tenant(connection, token.tenant_id)
    if sessions.needs_touch(session, now):
        await operations.last_uses.record_session(session, now)
    return session, token, tenant, application.clock.now()


def _find(uow: UnitOfWork, secret: str, now: datetime) -> tuple[Session, Token, str]:
    session, token = sessions.authenticate(uow, secret, now)
    tenant = uow.tenants.get(token.tenant_id)
    return session, token, tenant.name if tenant else ""


def see_other(path: str, **query: str) -> Response:
    """Send the browser to another page after a change."""
    return RedirectResponse(path + (f"?{urlencode(query)}" if query else ""), 303)


def text_of(content: bytes) -> str | None:
    """Return the text of a file, None for one that is not in UTF-8 or has a NUL."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def number_in(text: str | None, otherwise: T) -> int | T:
    """Return the number that a text from an address or a form is, ``otherwise`` for one that is none."""
    return int(text) if text and text.isdecimal() and len(text) < 10 else otherwise
