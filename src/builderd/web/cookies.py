"""The session cookie: HttpOnly, SameSite=Strict, and bound to this very host under TLS."""

from __future__ import annotations

from http.cookies import SimpleCookie

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
    _set(application, connection, response, _name(application, connection), secret)


def clear_session(application: Application, connection: HTTPConnection, response: Response) -> None:
    _set(application, connection, response, _name(application, connection), "", max_age=0)


def set_attempt(application: Application, connection: HTTPConnection, response: Response, value: str) -> None:
    name = _attempt_name(application, connection)
    _set(application, connection, response, name, value, max_age=ATTEMPT_SECONDS, same_site="Lax")


def clear_attempt(application: Application, connection: HTTPConnection, response: Response) -> None:
    name = _attempt_name(application, connection)
    _set(application, connection, response, name, "", max_age=0, same_site="Lax")


def _set(
    application: Application,
    connection: HTTPConnection,
    response: Response,
    name: str,
    value: str,
    *,
    max_age: int | None = None,
    same_site: str = "Strict",
) -> None:
    secure = is_secure(application, connection)
    cookie: SimpleCookie = SimpleCookie({name: value})
    cookie[name]["path"] = "/"
    cookie[name]["httponly"] = True
    cookie[name]["samesite"] = same_site
    if max_age is not None:
        cookie[name]["max-age"] = max_age
    if secure:
        cookie[name]["secure"] = True
    response.headers.append("set-cookie", cookie[name].OutputString())


def _name(application: Application, connection: HTTPConnection) -> str:
    return SECURE_NAME if is_secure(application, connection) else PLAIN_NAME


def _attempt_name(application: Application, connection: HTTPConnection) -> str:
    return SECURE_ATTEMPT if is_secure(application, connection) else PLAIN_ATTEMPT
