"""The app of the web pages, and the rule that says which paths of the service's port are theirs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from builderd.core.errors import BuilderdError, NotFound, Unauthenticated, ValidationFailed, machine_fault
from builderd.events import service as events
from builderd.events.store import EventQuery
from builderd.server.answers import STATUS, failure
from builderd.server.meter import Meter
from builderd.server.middleware import HeadAsGet, RequestLog
from builderd.server.operations import Operations
from builderd.server.streams import event, stream
from builderd.web.pages import account, builder, builders, deploying, files, logs, settings, sign_in, versions
from builderd.web.policy import PATH, Assets, Policy, check_origin
from builderd.web.shown import SENTENCES
from builderd.web.visits import ROUTES, Renderer, Visit, page, route, visit_of

#: Importing a file of pages adds them to ``ROUTES``.
PAGES = [account, builder, builders, deploying, files, logs, settings, sign_in, versions]


def create_web(operations: Operations, *, meter: Meter) -> Starlette:
    """Return the app of the web pages, which shares ``operations`` and ``meter`` with the API."""
    application = operations.application
    assets = Assets()
    app = Starlette(
        routes=[Route(f"{PATH}/{{hash}}/{{name}}", assets.answer, methods=["GET"]), *ROUTES],
        # In this order: the policy is on what the log answers as well.
        middleware=[Middleware(Policy), Middleware(RequestLog, meter=meter, page=unexpected), Middleware(HeadAsGet)],
        exception_handlers={BuilderdError: coded, HTTPException: routing},
    )
    app.state.application = application
    app.state.operations = operations
    app.state.rates = operations.rates
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


async def unexpected(request: Request, error: Exception) -> Response:
    """Answer an error that nobody expected; the request log has it."""
    shown = machine_fault(error) or BuilderdError(
        "The service failed at this page. Try again; if it fails again, its log has the cause under the request id."
    )
    return await _shown(request, shown, STATUS.get(shown.code, 500), [])


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
    otherwise = "The machine could not do it" if machine else "This cannot be done now"
    response = await renderer.plain(
        request,
        "error.html",
        {
            "title": SENTENCES["titles"].get(error.code, otherwise),
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
