"""Signing in by a token or by a one-time link, and signing out."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from builderd.domain.errors import RateLimited, Unauthenticated
from builderd.domain.tokens import Session
from builderd.operations.operations import Operations
from builderd.services import sessions
from builderd.services.application import Application
from builderd.store import UnitOfWork
from builderd.web.cookies import clear_session, set_session
from builderd.web.policy import check_origin
from builderd.web.rendering import Renderer
from builderd.web.visits import Visit, page, read_form, see_other

#: A path of these pages, and no other site: "//host" and "/\host" are other sites to a browser.
OWN_PATH = re.compile(r"/(?![/\\])[\x21-\x7e]*")
_BROWSERS = (("Edg/", "Edge"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"), ("Safari/", "Safari"), ("curl/", "curl"))
_SYSTEMS = (
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("Linux", "Linux"),
)


def client_of(request: Request) -> str:
    """Return the browser, system and address that a session is listed with."""
    agent = request.headers.get("user-agent", "")
    browser = next((name for mark, name in _BROWSERS if mark in agent), "a browser")
    system = next((name for mark, name in _SYSTEMS if mark in agent), "")
    address = request.client.host if request.client else ""
    return f"{browser}{' on ' + system if system else ''}, from {address}"


async def _shown(request: Request, template: str, status: int = 200, **values: object) -> Response:
    renderer: Renderer = request.app.state.renderer
    host = request.headers.get("host", "")
    return await renderer.plain(
        request, template, {"host": host, "host_url": str(request.base_url).rstrip("/"), **values}, status
    )


def next_of(text: str) -> str:
    """Return where to go after signing in: a path of these pages, never another site."""
    return text if OWN_PATH.fullmatch(text) else "/builders"


async def show_door(
    request: Request, status: int = 200, *, template: str = "sign_in.html", error: str = "", target: str = "/builders"
) -> Response:
    """Show the page before the pages: its form, perhaps with an error, or another template."""
    provider = request.app.state.application.identity_provider
    name = provider.name if provider else ""
    return await _shown(request, template, status, error=error, message="", next=target, provider=name)


async def show_sign_in(request: Request) -> Response:
    """Show the form for a token."""
    message = "You are signed out." if request.query_params.get("done") == "signed-out" else ""
    target = next_of(request.query_params.get("next", ""))
    provider = request.app.state.application.identity_provider
    name = provider.name if provider else ""
    return await _shown(request, "sign_in.html", error="", message=message, next=target, provider=name)


async def sign_in(request: Request) -> Response:
    """Begin a session with a token."""
    check_origin(request)
    form = await read_form(request)
    secret, target = form.text("token").strip(), next_of(form.text("next"))
    try:
        return await _begin(
            request, secret, target, lambda uow, client, now: sessions.sign_in(uow, secret, client, now)
        )
    except (Unauthenticated, RateLimited) as error:
        status = 429 if isinstance(error, RateLimited) else 401
        return await show_door(request, status, error=error.message, target=target)


async def show_link(request: Request) -> Response:
    """Show the button that spends a one-time link. Looking at it, as a preview of the link does, spends nothing."""
    application: Application = request.app.state.application
    code, now = request.path_params["code"], application.clock.now()

    def look(uow: UnitOfWork) -> str:
        token = uow.tokens.get(sessions.find_link(uow, code, now).token_id)
        tenant = uow.tenants.get(token.tenant_id) if token else None
        return tenant.name if tenant else ""

    try:
        tenant = await application.store.read(look)
    except Unauthenticated as error:
        return await _refused(request, code, error)
    return await _shown(request, "once.html", error="", tenant=tenant)


async def spend_link(request: Request) -> Response:
    """Begin a session with a one-time link."""
    check_origin(request)
    code = request.path_params["code"]
    try:
        return await _begin(
            request, code, "/builders", lambda uow, client, now: sessions.spend_link(uow, code, client, now)
        )
    except (Unauthenticated, RateLimited) as error:
        return await _shown(request, "once.html", 401, error=error.message, tenant="")


async def _refused(request: Request, code: str, error: Unauthenticated) -> Response:
    message = error.message
    try:
        count_guess(request, code)
    except RateLimited as limited:
        return await _shown(request, "once.html", 429, error=limited.message, tenant="")
    return await _shown(request, "once.html", 401, error=message, tenant="")


def count_guess(request: Request, secret: str) -> None:
    """Count a wrong secret of this address. Raises ``RateLimited`` when too many come from it."""
    operations: Operations = request.app.state.operations
    operations.rates.failed(request.client.host if request.client else "", secret)


#: Begins a session for a client at a time; returns it with its secret.
Begin = Callable[[UnitOfWork, str, datetime], tuple[Session, str]]


async def begin_session(request: Request, begin: Begin) -> str:
    """Begin a session and return its secret. Raises what ``begin`` raises."""
    application: Application = request.app.state.application
    now, client = application.clock.now(), client_of(request)
    _, secret = await application.store.write(lambda uow: begin(uow, client, now))
    return secret


async def _begin(request: Request, secret: str, target: str, begin: Begin) -> Response:
    """Begin the session and set its cookie. Raises ``Unauthenticated``, and ``RateLimited`` for too many guesses."""
    try:
        session_secret = await begin_session(request, begin)
    except Unauthenticated:
        count_guess(request, secret)
        raise
    response = RedirectResponse(quote(target, safe="/?&=%:+,;@!*'()~-._"), 303)
    set_session(request.app.state.application, request, response, session_secret)
    return response


async def sign_out(visit: Visit) -> Response:
    """End this session."""
    await visit.write(lambda uow: sessions.end(uow, visit.session, visit.session.id))
    response = see_other("/sign-in", {"done": "signed-out"})
    clear_session(visit.application, visit.request, response)
    return response


async def show_sessions(visit: Visit) -> Response:
    """List the sessions of this session's token."""
    found = await visit.read(lambda uow: uow.sessions.of_token(visit.token.id))
    return await visit.page("sessions.html", sessions=[one for one in found if one.is_valid(visit.now)])


async def end_session(visit: Visit) -> Response:
    """End one session of this token, or all of them."""
    form = await visit.form()
    wanted = form.text("session")
    if wanted:
        await visit.write(lambda uow: sessions.end(uow, visit.session, wanted))
        if wanted != visit.session.id:
            return see_other("/sessions", {"done": "session-ended"})
    else:
        await visit.write(lambda uow: sessions.end_all(uow, visit.session))
    response = see_other("/sign-in", {"done": "signed-out"})
    clear_session(visit.application, visit.request, response)
    return response


ROUTES = [
    Route("/sign-in", show_sign_in, methods=["GET"]),
    Route("/sign-in", sign_in, methods=["POST"]),
    Route("/sign-in/once/{code}", show_link, methods=["GET"]),
    Route("/sign-in/once/{code}", spend_link, methods=["POST"]),
    page("/sign-out", sign_out, post=True),
    page("/sessions", show_sessions),
    page("/sessions", end_session, post=True),
]
