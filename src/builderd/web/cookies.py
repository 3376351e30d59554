"""The session cookie: HttpOnly, SameSite=Strict, and bound to this very host under TLS."""

from __future__ import annotations

from http.cookies import Morsel, SimpleCookie

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
    return _one(connection, _name(application, connection))


def attempt_cookie(application: Application, connection: HTTPConnection) -> str | None:
    """Return the cookie of a sign-in on its way, None without one or with two."""
    return _one(connection, _attempt_name(application, connection))


def _one(connection: HTTPConnection, name: str) -> str | None:
    found = [
        value
        for header in connection.headers.getlist("cookie")
        for key, _, value in (pair.strip().partition("=") for pair in header.split(";"))
        if key == name
    ]
    return found[0] if len(found) == 1 else None


def set_session(application: Application, connection: HTTPConnection, response: Response, secret: str) -> None:
    """Set the cookie. It lives until the browser ends; the session itself may end before."""
    _set(response, _cookie(_name(application, connection), secret), secure=is_secure(application, connection))


def clear_session(application: Application, connection: HTTPConnection, response: Response) -> None:
    cookie = _cookie(_name(application, connection), "", max_age=0)
    _set(response, cookie, secure=is_secure(application, connection))


def set_attempt(application: Application, connection: HTTPConnection, response: Response, value: str) -> None:
    cookie = _cookie(_attempt_name(application, connection), value, max_age=ATTEMPT_SECONDS, same_site="Lax")
    _set(response, cookie, secure=is_secure(application, connection))


def clear_attempt(application: Application, connection: HTTPConnection, response: Response) -> None:
    cookie = _cookie(_attempt_name(application, connection), "", max_age=0, same_site="Lax")
    _set(response, cookie, secure=is_secure(application, connection))


def _cookie(name: str, value: str, *, max_age: int | None = None, same_site: str = "Strict") -> Morsel[str]:
    cookie: SimpleCookie = SimpleCookie({name: value})
    cookie[name]["path"] = "/"
    cookie[name]["httponly"] = True
    cookie[name]["samesite"] = same_site
    if max_age is not None:
        cookie[name]["max-age"] = max_age
    return cookie[name]


def _set(response: Response, cookie: Morsel[str], *, secure: bool) -> None:
    if secure:
        cookie["secure"] = True
    response.headers.append("set-cookie", cookie.OutputString())


def _name(application: Application, connection: HTTPConnection) -> str:
    return SECURE_NAME if is_secure(application, connection) else PLAIN_NAME


def _attempt_name(application: Application, connection: HTTPConnection) -> str:
    return SECURE_ATTEMPT if is_secure(application, connection) else PLAIN_ATTEMPT
