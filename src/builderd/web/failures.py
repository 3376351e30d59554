"""Errors as pages: coded ones, unknown paths, and what nobody expected."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from uvicorn.protocols.utils import ClientDisconnected

from builderd.api.server.answers import STATUS, failure
from builderd.api.server.middleware import HeadSent
from builderd.domain.errors import BuilderdError, NotFound, Unauthenticated, ValidationFailed, machine_fault
from builderd.web.visits import Renderer

logger = logging.getLogger(__name__)

#: Headings of errors, by their code.
TITLES = {
    "not_found": "Not found",
    "forbidden": "Not allowed",
    "unauthenticated": "Signed out",
    "rate_limited": "Too many requests",
    "validation_error": "This cannot be taken",
    "too_large": "Too large",
    BuilderdError.code: "Something went wrong",
}
#: Ends of a connection, and of an answer that has its head alone: no failures.
ENDS = (ClientDisconnect, ClientDisconnected, WebSocketDisconnect, HeadSent)


class UnexpectedErrors:
    """ASGI middleware, innermost: an exception that nobody expected is logged and answered with a page.

    One after the head of an answer, and one while the page is made, pass on: the request log answers these.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watch(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except ENDS:
            raise
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            logger.exception("page failed: unexpected error")
            shown = machine_fault(error) or BuilderdError(
                "The service failed at this page. Try again; if it fails again, its log has the cause under the "
                "request id."
            )
            response = await _shown(Request(scope, receive), shown, STATUS.get(shown.code, 500), [])
            await response(scope, receive, send)


async def coded(request: Request, error: Exception) -> Response:
    """Answer an error of the domain."""
    assert isinstance(error, BuilderdError)
    errors = error.errors if isinstance(error, ValidationFailed) else {}
    return await _shown(request, error, STATUS[error.code], list(errors.items()))


async def routing(request: Request, error: Exception) -> Response:
    """Answer a path that no page has."""
    assert isinstance(error, HTTPException)
    return await _shown(request, NotFound("There is no such page."), error.status_code, [])


def _same_page(request: Request) -> str:
    """Return the path of a page that may be asked for again, "" for a form's: what it sent is gone."""
    if request.method != "GET":
        return ""
    # Two slashes would begin the name of another host.
    path = "/" + request.url.path.lstrip("/")
    return path + (f"?{request.url.query}" if request.url.query else "")


async def _shown(
    request: Request, error: BuilderdError, status: int, fields: list[tuple[str, Sequence[str]]]
) -> Response:
    if "application/json" in request.headers.get("accept", ""):
        # The page's own script asks.
        return failure(error, request.state.request_id if status >= 500 else None).response()
    renderer: Renderer = request.app.state.renderer
    machine = status >= 500
    response = await renderer.plain(
        request,
        "error.html",
        {
            "title": TITLES.get(error.code, "The machine could not do it" if machine else "This cannot be done now"),
            "kind": "bad" if machine else "warn",
            "icon": "octagon-x" if machine else "triangle-alert",
            "error": error.message,
            "fields": fields,
            "request_id": request.state.request_id if machine else "",
            "again": _same_page(request) if error.retry_after is not None else "",
            "signed_out": isinstance(error, Unauthenticated),
        },
        status,
    )
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response
