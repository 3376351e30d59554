"""The session cookie: HttpOnly, SameSite=Strict, and bound to this very host under TLS."""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.responses import Response

from builderd.services.application import Application

#: Browsers take the first only over TLS and from this host itself: no sibling host can plant one.
SECURE_NAME, PLAIN_NAME = "__Host-builderd", "builderd-session"
#: Of a sign-in on its way to an identity provider and back; the only cookie that another site's link brings along.
SECURE_ATTEMPT, PLAIN_ATTEMPT = "__Host-builderd-openid", "builderd-openid"
ATTEMPT_SECONDS = 600


def is_secure(application: Application, connection: HTTPConnection) -> bool:
    """Return whether browsers reach the pages over TLS, perhaps by way of a proxy."""
    return connection.url.scheme in ("https", "wss") or (application.public_url or "").startswith("https://")


def session_secret(application: Application, connection: HTTPConnection) -> str | None:
    """Return the secret in the session cookie, None without one.

    None also for two cookies of this name: over plain HTTP a sibling host can plant one of its own, and which of the
    two a browser sends first is the sibling's choice.
    """
    return _one(connection, SECURE_NAME if is_secure(application, connection) else PLAIN_NAME)


def attempt_cookie(application: Application, connection: HTTPConnection) -> str | None:
    """Return the cookie of a sign-in on its way, None without one or with two."""
    return _one(connection, SECURE_ATTEMPT if is_secure(application, connection) else PLAIN_ATTEMPT)


def _one(connection: HTTPConnection, name: str) -> str | None:
    found = [
        value
        for header in connection.headers.getlist("cookie")
        for key, _, value in (pair.strip().partition("=") for pair in header.split(";"))
        if key == name
    ]
    return found[0] if len(found) == 1 else None


def set_session(application: Application, connection: HTTPConnection, response: Response, secret: str | None) -> None:
    """Set the cookie, or remove it without a secret. It lives until the browser ends; the session may end before."""
    secure = is_secure(application, connection)
    age = None if secret else 0
    name = SECURE_NAME if secure else PLAIN_NAME
    response.set_cookie(name, secret or "", age, secure=secure, httponly=True, samesite="strict")


def set_attempt(application: Application, connection: HTTPConnection, response: Response, value: str | None) -> None:
    """Set the cookie of a sign-in on its way, or remove it without a value."""
    secure = is_secure(application, connection)
    age = ATTEMPT_SECONDS if value else 0
    name = SECURE_ATTEMPT if secure else PLAIN_ATTEMPT
    response.set_cookie(name, value or "", age, secure=secure, httponly=True, samesite="lax")
