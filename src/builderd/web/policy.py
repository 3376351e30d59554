"""Browser policy of the pages: headers of every answer, and the refusal of requests from other origins.

Apps may live on sibling hosts, to which a browser sends SameSite=Strict cookies all the same. So every request says
where it comes from (``Sec-Fetch-Site``, or ``Origin`` where a browser does not send that), or changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from builderd.domain.errors import Forbidden

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Nothing to other origins. With no-referrer, browsers would send forms of the page itself with "Origin: null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_REFUSED = "This request comes from another site, and was refused: open the page itself, and repeat it there."


def check_origin(connection: HTTPConnection) -> None:
    """Raise ``Forbidden`` for a request that another origin caused, unless it is a plain visit of a page.

    A request that changes something, and the opening of a WebSocket, must say where it comes from.
    """
    method, headers = connection.scope.get("method", ""), connection.headers
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    changes = method not in SAFE
    if changes and origin is not None and not _is_own(origin, connection):
        raise Forbidden(_REFUSED)
    if site is not None:
        visits = not changes and headers.get("sec-fetch-mode") == "navigate" and _is_document(headers)
        if site not in ("same-origin", "none") and not visits:
            raise Forbidden(_REFUSED)
    elif changes and origin is None:
        raise Forbidden("This request does not say from which site it comes (Origin), and was refused.")


def _is_own(origin: str, connection: HTTPConnection) -> bool:
    """Compare scheme, host and port; behind a proxy that ends TLS the scheme is that of ``public_url``."""
    host = connection.headers.get("host")
    public = urlsplit(connection.app.state.application.public_url or "")
    is_public = public.netloc == host and bool(public.scheme)
    scheme = public.scheme if is_public else connection.url.scheme.replace("ws", "http")
    return origin == f"{scheme}://{host}"


def _is_document(headers: Headers) -> bool:
    """Return whether the browser shows the answer as a page of its own, not within another one."""
    return headers.get("sec-fetch-dest", "document") == "document"


class Policy:
    """ASGI middleware: sets the headers on every answer of the pages."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, guarded)
