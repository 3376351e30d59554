"""ASGI middleware: every path with GET answers HEAD too."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from builderd.api.server.problems import allowed_methods


class HeadSent(Exception):
    """Raised into the application once the head of the answer was sent, so that it makes no body."""


class Heads:
    """ASGI middleware that answers HEAD for every path with GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or "HEAD" not in allowed_methods(Request(scope)):
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            # The listener looks here to leave the body out, and the log to name the method.
            scope["method"] = "HEAD"
            await send(message)
            await send({"type": "http.response.body"})
            raise HeadSent

        scope["method"] = "GET"
        try:
            await self._app(scope, receive, send_head)
        except HeadSent:
            pass
        finally:
            scope["method"] = "HEAD"
