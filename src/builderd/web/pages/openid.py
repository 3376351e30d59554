"""Signing in with an identity provider: there, and back with a code.

A cookie of its own binds the way back to the browser that began. It is ``Lax``, since the provider sends the browser
here from another site; the session's cookie stays ``Strict``.
"""

from __future__ import annotations

import hmac
import json
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from builderd.domain.errors import BuilderdError, NotFound, RateLimited, Unauthenticated
from builderd.domain.tokens import Attempt
from builderd.ports.identity_provider import IdentityProvider
from builderd.services import sessions
from builderd.services.application import Application
from builderd.web.cookies import attempt_cookie, clear_attempt, set_attempt, set_session
from builderd.web.pages.sign_in import begin_session, count_guess, next_of, show_door

#: Longest code that is taken from the address.
MAX_CODE = 4_096
_LOST = "This browser began no such sign-in, or more than 10 minutes ago: begin again."


def _provider(request: Request) -> IdentityProvider:
    application: Application = request.app.state.application
    if application.identity_provider is None:
        raise NotFound("There is no such page.")
    return application.identity_provider


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
    set_attempt(application, request, response, _packed(attempt, next_of(request.query_params.get("next", ""))))
    return response


async def come_back(request: Request) -> Response:
    """Begin a session for the person whom the provider vouches for."""
    provider, application, query = _provider(request), request.app.state.application, request.query_params
    try:
        attempt, target = _unpacked(attempt_cookie(application, request) or "")
        identity = await provider.identity(_code(query, attempt), attempt)
        secret = await begin_session(request, lambda uow, client, now: sessions.sign_in_as(uow, identity, client, now))
    except Unauthenticated as error:
        return await _refused(request, application, error)
    except RateLimited as error:
        return await show_door(request, 429, error=error.message)
    # A page, not a redirect: the browser would not send the new Strict cookie on a way that began at another site.
    response = await show_door(request, 200, template="signed_in.html", target=target)
    set_session(application, request, response, secret)
    clear_attempt(application, request, response)
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


async def _refused(request: Request, application: Application, error: Unauthenticated) -> Response:
    status, message = 401, error.message
    try:
        count_guess(request, request.query_params.get("state", ""))
    except RateLimited as limited:
        status, message = 429, limited.message
    response = await show_door(request, status, error=message)
    clear_attempt(application, request, response)
    return response


def _packed(attempt: Attempt, target: str) -> str:
    fields = [attempt.state, attempt.nonce, attempt.verifier, attempt.redirect_uri, target]
    return urlsafe_b64encode(json.dumps(fields).encode()).decode()


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


ROUTES = [
    Route("/sign-in/openid", begin, methods=["GET"]),
    Route("/sign-in/openid/back", come_back, methods=["GET"]),
]
