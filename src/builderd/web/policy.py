"""Browser policy of the pages: headers of every answer, cookies, and the refusal of requests from other origins.

Apps may live on sibling hosts, to which a browser sends SameSite=Strict cookies all the same. So every request says
where it comes from (``Sec-Fetch-Site``, or ``Origin`` where a browser does not send that), or changes nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from builderd.application import Application
from builderd.core.errors import Forbidden, NotFound

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
        # The browser shows the answer as a page of its own, not within another one.
        is_document = headers.get("sec-fetch-dest", "document") == "document"
        visits = not changes and headers.get("sec-fetch-mode") == "navigate" and is_document
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


@dataclass(frozen=True, slots=True)
class Cookie:
    """A cookie. Browsers take its secure name only over TLS and from this host itself: no sibling host can plant one.

    ``seconds`` None: it lives until the browser ends.
    """

    secure_name: str
    plain_name: str
    same_site: Literal["strict", "lax"]
    seconds: int | None = None

    def get(self, application: Application, connection: HTTPConnection) -> str | None:
        """Return the value, None without one.

        None also for two cookies of this name: over plain HTTP a sibling host can plant one of its own, and which of
        the two a browser sends first is the sibling's choice.
        """
        name = self.secure_name if is_secure(application, connection) else self.plain_name
        found = [
            value
            for header in connection.headers.getlist("cookie")
            for key, _, value in (pair.strip().partition("=") for pair in header.split(";"))
            if key == name
        ]
        return found[0] if len(found) == 1 else None

    def set(self, application: Application, connection: HTTPConnection, response: Response, value: str | None) -> None:
        """Set the cookie, or remove it without a value."""
        secure = is_secure(application, connection)
        name, age = self.secure_name if secure else self.plain_name, self.seconds if value else 0
        response.set_cookie(name, value or "", age, secure=secure, httponly=True, samesite=self.same_site)


#: The secret of a session, which may end before the browser does.
SESSION = Cookie("__Host-builderd", "builderd-session", "strict")
#: A sign-in on its way to an identity provider and back; the only cookie that another site's link brings along.
SIGN_IN_ATTEMPT = Cookie("__Host-builderd-openid", "builderd-openid", "lax", 600)


def is_secure(application: Application, connection: HTTPConnection) -> bool:
    """Return whether browsers reach the pages over TLS, perhaps by way of a proxy."""
    return connection.url.scheme in ("https", "wss") or (application.public_url or "").startswith("https://")


HERE = Path(__file__).parent
PATH = "/static"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
#: What is compressed already.
PACKED = frozenset({".woff2"})
#: In a style sheet: the address of another static file.
_REFERENCE = re.compile(r'url\("asset:([\w.-]+)"\)')


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file: its content, gzipped content where that is smaller, media type, and URL with its hash."""

    content: bytes
    packed: bytes | None
    media_type: str
    url: str


class Assets:
    """All static files by name. A style sheet that refers to another file gets that file's URL."""

    def __init__(self) -> None:
        self._assets: dict[str, Asset] = {}
        # Style sheets last: their content has the hashes of the other files in it.
        files = [path for folder in ("static", "vendor") for path in (HERE / folder).rglob("*") if path.suffix in TYPES]
        for path in sorted(files, key=lambda path: (path.suffix == ".css", path.name)):
            self._assets[path.name] = _asset(path, self._assets)

    def url(self, name: str) -> str:
        """Return the URL of the file with this name."""
        return self._assets[name].url

    async def answer(self, request: Request) -> Response:
        """Return the file. Raises ``NotFound``, also for another hash: what a cache keeps must never change."""
        asset = self._assets.get(request.path_params["name"])
        if asset is None or asset.url != request.url.path:
            raise NotFound("There is no such file.")
        headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
        if asset.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(asset.packed, 200, {**headers, "Content-Encoding": "gzip"}, asset.media_type)
        return Response(asset.content, 200, headers, asset.media_type)


def _asset(path: Path, known: Mapping[str, Asset]) -> Asset:
    content = path.read_bytes()
    if path.suffix == ".css":
        text = _REFERENCE.sub(lambda match: f'url("{known[match[1]].url}")', content.decode())
        content = text.encode()
    packed = None if path.suffix in PACKED else gzip.compress(content, 9, mtime=0)
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Asset(content, packed, TYPES[path.suffix], f"{PATH}/{digest}/{path.name}")
