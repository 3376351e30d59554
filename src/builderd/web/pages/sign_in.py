"""Signing in by a token, a one-time link or an identity provider, and signing out."""

from __future__ import annotations

import hmac
import json
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import quote

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from builderd.application import Application
from builderd.core.errors import BuilderdError, NotFound, RateLimited, Unauthenticated
from builderd.database.unit_of_work import UnitOfWork
from builderd.sessions import service as sessions
from builderd.tokens.model import Attempt, Session
from builderd.tokens.port import IdentityProvider
from builderd.web.policy import SESSION, SIGN_IN_ATTEMPT, check_origin
from builderd.web.visits import Renderer, Visit, page, read_form, route, see_other

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
    request: Request,
    status: int = 200,
    *,
    template: str = "sign_in.html",
    error: str = "",
    message: str = "",
    target: str = "/builders",
) -> Response:
    """Show the page before the pages: its form, perhaps with an error, or another template."""
    provider = request.app.state.application.identity_provider
    name = provider.name if provider else ""
    return await _shown(request, template, status, error=error, message=message, next=target, provider=name)


@route("/sign-in")
async def show_sign_in(request: Request) -> Response:
    """Show the form for a token."""
    message = "You are signed out." if request.query_params.get("done") == "signed-out" else ""
    return await show_door(request, message=message, target=next_of(request.query_params.get("next", "")))


@route("/sign-in", post=True)
async def sign_in(request: Request) -> Response:
    """Begin a session with a token."""
    check_origin(request)
    form = await read_form(request)
    secret, target = form.get("token", "").strip(), next_of(form.get("next", ""))
    try:
        return await _begin(
            request, secret, target, lambda uow, client, now: sessions.sign_in(uow, secret, client, now)
        )
    except (Unauthenticated, RateLimited) as error:
        status = 429 if isinstance(error, RateLimited) else 401
        return await show_door(request, status, error=error.message, target=target)


@route("/sign-in/once/{code}")
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
        status, message = _refusal(request, code, error)
        return await _shown(request, "once.html", status, error=message, tenant="")
    return await _shown(request, "once.html", error="", tenant=tenant)


@route("/sign-in/once/{code}", post=True)
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


def _refusal(request: Request, secret: str, error: Unauthenticated) -> tuple[int, str]:
    """Count a wrong secret; return the status and message of the answer to it."""
    try:
        request.app.state.rates.failed(request.client.host if request.client else "", secret)
    except RateLimited as limited:
        return 429, limited.message
    return 401, error.message


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
        request.app.state.rates.failed(request.client.host if request.client else "", secret)
        raise
    response = RedirectResponse(quote(target, safe="/?&=%:+,;@!*'()~-._"), 303)
    SESSION.set(request.app.state.application, request, response, session_secret)
    return response


@page("/sign-out", post=True)
async def sign_out(visit: Visit) -> Response:
    """End this session."""
    await visit.write(lambda uow: sessions.end(uow, visit.session, visit.session.id))
    response = see_other("/sign-in", done="signed-out")
    SESSION.set(visit.application, visit.request, response, None)
    return response


@page("/sessions")
async def show_sessions(visit: Visit) -> Response:
    """List the sessions of this session's token."""
    found = await visit.read(lambda uow: uow.sessions.of_token(visit.token.id))
    return await visit.page("sessions.html", sessions=[one for one in found if one.is_valid(visit.now)])


@page("/sessions", post=True)
async def end_session(visit: Visit) -> Response:
    """End one session of this token, or all of them."""
    form = await visit.form()
    wanted = form.get("session", "")
    if wanted:
        await visit.write(lambda uow: sessions.end(uow, visit.session, wanted))
        if wanted != visit.session.id:
            return see_other("/sessions", done="session-ended")
    else:
        await visit.write(lambda uow: sessions.end_all(uow, visit.session))
    response = see_other("/sign-in", done="signed-out")
    SESSION.set(visit.application, visit.request, response, None)
    return response


# With an identity provider: there, and back with a code. A cookie of its own binds the way back to the browser that
# began. It is Lax, since the provider sends the browser here from another site; the session's stays Strict.

#: Longest code that is taken from the address.
MAX_CODE = 4_096
_LOST = "This browser began no such sign-in, or more than 10 minutes ago: begin again."


def _provider(request: Request) -> IdentityProvider:
    application: Application = request.app.state.application
    if application.identity_provider is None:
        raise NotFound("There is no such page.")
    return application.identity_provider


@route("/sign-in/openid")
async def begin(request: Request) -> Response:
    """Send the browser to the provider."""
    application: Application = request.app.state.application
    root = (application.public_url or str(request.base_url)).rstrip("/")
    attempt = Attempt(
        secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48), f"{root}/sign-in/openid/back"
    )
    try:
        url = await _provider(request).url(attempt)
    except NotFound:
        raise
    except BuilderdError as error:
        return await show_door(request, 503, error=error.message)
    response = RedirectResponse(url, 303)
    target = next_of(request.query_params.get("next", ""))
    fields = [attempt.state, attempt.nonce, attempt.verifier, attempt.redirect_uri, target]
    packed = urlsafe_b64encode(json.dumps(fields).encode()).decode()
    SIGN_IN_ATTEMPT.set(application, request, response, packed)
    return response


@route("/sign-in/openid/back")
async def come_back(request: Request) -> Response:
    """Begin a session for the person whom the provider vouches for."""
    provider, application, query = _provider(request), request.app.state.application, request.query_params
    try:
        attempt, target = _unpacked(SIGN_IN_ATTEMPT.get(application, request) or "")
        identity = await provider.identity(_code(query, attempt), attempt)
        secret = await begin_session(request, lambda uow, client, now: sessions.sign_in_as(uow, identity, client, now))
    except Unauthenticated as error:
        status, message = _refusal(request, query.get("state", ""), error)
        response = await show_door(request, status, error=message)
        SIGN_IN_ATTEMPT.set(application, request, response, None)
        return response
    except RateLimited as error:
        return await show_door(request, 429, error=error.message)
    # A page, not a redirect: the browser would not send the new Strict cookie on a way that began at another site.
    response = await show_door(request, 200, template="signed_in.html", target=target)
    SESSION.set(application, request, response, secret)
    SIGN_IN_ATTEMPT.set(application, request, response, None)
    return response


def _code(query: QueryParams, attempt: Attempt) -> str:
    """Return the code that the provider sent back for this attempt. Raises ``Unauthenticated``."""
    if not hmac.compare_digest(query.get("state", "").encode(), attempt.state.encode()):
        raise Unauthenticated(_LOST)
    code = query.get("code", "")
    if not code or len(code) > MAX_CODE:
        # Its own text, ``error_description``, came by way of the browser and is not shown.
        raise Unauthenticated("The identity provider did not sign you in.")
    return code


def _unpacked(text: str) -> tuple[Attempt, str]:
    """Return the attempt of a cookie, and where to go then. Raises ``Unauthenticated``."""
    try:
        fields: Any = json.loads(urlsafe_b64decode(text))
        state, nonce, verifier, redirect_uri, target = fields
    except (ValueError, TypeError, RecursionError):
        raise Unauthenticated(_LOST) from None
    if not all(isinstance(one, str) and one for one in (state, nonce, verifier, redirect_uri, target)):
        raise Unauthenticated(_LOST)
    return Attempt(state, nonce, verifier, redirect_uri), next_of(target)
