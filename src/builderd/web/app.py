"""The app of the web pages, and the rule that says which paths of the service's port are theirs."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from builderd.api.server.body_parser import BodyParser
from builderd.api.server.heads import Heads
from builderd.api.server.meter import Meter
from builderd.api.server.request_log import RequestLog
from builderd.domain.errors import BuilderdError
from builderd.operations.operations import Operations
from builderd.web.assets import PATH, Assets
from builderd.web.failures import UnexpectedErrors, coded, routing
from builderd.web.live import Feeds, open_stream
from builderd.web.pages import (
    activity,
    backups,
    builder,
    builders,
    code,
    credentials,
    deploying,
    files,
    logs,
    machine,
    metrics,
    openid,
    qa,
    reviews,
    settings,
    sign_in,
    spending,
    terminal,
    tokens,
    versions,
    webhooks,
)
from builderd.web.policy import Policy
from builderd.web.rendering import Renderer
from builderd.web.visits import Visit, page

#: All pages, a file each.
PAGES = (
    sign_in,
    openid,
    builders,
    deploying,
    builder,
    logs,
    metrics,
    versions,
    code,
    reviews,
    qa,
    files,
    terminal,
    backups,
    settings,
    activity,
    spending,
    credentials,
    webhooks,
    tokens,
    machine,
)


def create_web(operations: Operations, *, meter: Meter) -> Starlette:
    """Return the app of the web pages, which shares ``operations`` and ``meter`` with the API."""
    application = operations.application
    assets = Assets()
    app = Starlette(
        routes=routes(assets),
        # In this order: the log sees the answer as it leaves, and the policy is on errors as well.
        middleware=[
            Middleware(RequestLog, meter=meter),
            Middleware(Policy),
            Middleware(Heads),
            Middleware(UnexpectedErrors),
        ],
        exception_handlers={BuilderdError: coded, HTTPException: routing},
    )
    app.state.application = application
    app.state.operations = operations
    app.state.renderer = Renderer(application, assets)
    app.state.feeds = Feeds(application)
    app.state.body_parser = BodyParser()
    return app


def routes(assets: Assets) -> Sequence[BaseRoute]:
    """Return all routes of the pages."""
    return [
        Route(f"{PATH}/{{hash}}/{{name}}", assets.answer, methods=["GET"]),
        Route("/live", open_stream, methods=["GET"]),
        page("/live/state", _state),
        *(route for noun in PAGES for route in noun.ROUTES),
    ]


async def _state(visit: Visit) -> Response:
    """Say that the session is valid, and a stream is free: one that ended cannot tell its page why.

    Raises ``RateLimited``.
    """
    feeds: Feeds = visit.request.app.state.feeds
    feeds.listeners.admit(visit.token.tenant_id)
    return Response(status_code=204)


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
