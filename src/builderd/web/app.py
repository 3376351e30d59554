"""The app of the web pages, and the rule that says which paths of the service's port are theirs."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from uvicorn.protocols.utils import ClientDisconnected

from builderd.core.errors import BuilderdError, NotFound, Unauthenticated, ValidationFailed, machine_fault
from builderd.events import service as events
from builderd.events.store import EventQuery
from builderd.server.answers import STATUS, failure
from builderd.server.meter import Meter
from builderd.server.middleware import HeadAsGet, HeadSent, RequestLog
from builderd.server.operations import Operations
from builderd.server.streams import event, stream
from builderd.web.pages import account, builder, builders, deploying, files, logs, settings, sign_in, versions
from builderd.web.policy import PATH, Assets, Policy, check_origin
from builderd.web.visits import ROUTES, Renderer, Visit, page, route, visit_of

#: Importing a file of pages adds them to ``ROUTES``.
PAGES = [account, builder, builders, deploying, files, logs, settings, sign_in, versions]


def create_web(operations: Operations, *, meter: Meter) -> Starlette:
    """Return the app of the web pages, which shares ``operations`` and ``meter`` with the API."""
    application = operations.application
    assets = Assets()
    app = Starlette(
        routes=[Route(f"{PATH}/{{hash}}/{{name}}", assets.answer, methods=["GET"]), *ROUTES],
        # In this order: the log sees the answer as it leaves, and the policy is on errors as well.
        middleware=[
            Middleware(RequestLog, meter=meter),
            Middleware(Policy),
            Middleware(HeadAsGet),
            Middleware(UnexpectedErrors),
        ],
        exception_handlers={BuilderdError: coded, HTTPException: routing},
    )
    app.state.application = application
    app.state.operations = operations
    app.state.renderer = Renderer(application, assets)
    return app


@page("/live/state")
async def live_state(visit: Visit) -> Response:
    """Say that the session is valid, and a stream is free: one that ended cannot tell its page why.

    Raises ``RateLimited``.
    """
    visit.operations.live_pages.admit(visit.token.tenant_id)
    return Response(status_code=204)


@route("/live")
async def live(request: Request) -> Response:
    """Stream what changes to an open page: ``change`` (type and builder), after ``reset``: look at everything anew."""
    check_origin(request)
    visit = await visit_of(request)
    visit.operations.live_pages.admit(visit.token.tenant_id)
    return stream(_changes(visit), permitted=visit.is_good_still)


async def _changes(visit: Visit) -> AsyncGenerator[bytes]:
    application, operations, tenant, query = visit.application, visit.operations, visit.token.tenant_id, EventQuery()
    with operations.live_pages.slot(tenant):
        after = await events.start_after(application, tenant, query, None)
        # What happened between the page and its stream, or while the stream was broken.
        yield event("reset", {})
        async with aclosing(events.follow(application, tenant, query, after, operations.paged_reads)) as found:
            async for one in found:
                yield event("change", {"type": one.type, "builder": one.builder_id})


class Site:
    """The API and the pages on one port: a path whose first segment is a page's goes to the pages."""

    def __init__(self, api: ASGIApp, web: Starlette) -> None:
        self._api = api
        self._web = web
        self._segments = {_first(getattr(route, "path", "")) for route in web.routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_page = _first(scope["path"]) in self._segments
        await (self._web if is_page else self._api)(scope, receive, send)


def _first(path: str) -> str:
    return path.strip("/").partition("/")[0]


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
