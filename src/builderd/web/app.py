"""The app of the web pages, and the rule that says which paths of the service's port are theirs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from builderd.api.server.meter import Meter
from builderd.api.server.middleware import HeadAsGet, RequestLog
from builderd.api.server.streams import event, stream
from builderd.domain.errors import BuilderdError
from builderd.operations.operations import Operations
from builderd.services import events
from builderd.store.events import EventQuery
from builderd.web.failures import UnexpectedErrors, coded, routing
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
