"""The app of the web pages, and the rule that says which paths of the service's port are theirs."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from builderd.api.server.answers import STATUS, failure
from builderd.api.server.body_parser import BodyParser
from builderd.api.server.heads import Heads
from builderd.api.server.meter import Meter
from builderd.api.server.request_log import RequestLog
from builderd.domain.errors import BuilderdError, NotFound, Unauthenticated, ValidationFailed
from builderd.operations.operations import Operations
from builderd.web.assets import PATH, Assets
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
#: Headings of errors, by their code.
TITLES = {
    "not_found": "Not found",
    "forbidden": "Not allowed",
    "unauthenticated": "Signed out",
    "rate_limited": "Too many requests",
    "validation_error": "This cannot be taken",
    "too_large": "Too large",
}


def create_web(operations: Operations, *, meter: Meter) -> Starlette:
    """Return the app of the web pages, which shares ``operations`` and ``meter`` with the API."""
    application = operations.application
    assets = Assets()
    app = Starlette(
        routes=routes(assets),
        # In this order: the log sees the answer as it leaves, and the policy is on errors as well.
        middleware=[Middleware(RequestLog, meter=meter), Middleware(Policy), Middleware(Heads)],
        exception_handlers={BuilderdError: _coded, HTTPException: _routing},
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
    """Say that the session is valid: a stream that ended cannot tell its page why."""
    return Response(status_code=204)


async def _coded(request: Request, error: Exception) -> Response:
    assert isinstance(error, BuilderdError)
    status = STATUS[error.code]
    errors = error.errors if isinstance(error, ValidationFailed) else {}
    return await _shown(request, error, status, list(errors.items()))


async def _routing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await _shown(request, NotFound("There is no such page."), error.status_code, [])


async def _shown(
    request: Request, error: BuilderdError, status: int, fields: list[tuple[str, Sequence[str]]]
) -> Response:
    if "application/json" in request.headers.get("accept", ""):
        # The page's own script asks.
        return failure(error).response()
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
            "signed_out": isinstance(error, Unauthenticated),
        },
        status,
    )
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


class Site:
    """The API and the pages on one port: a path whose first segment is a page's goes to the pages."""

    def __init__(self, api: ASGIApp, web: Starlette) -> None:
        self._api = api
        self._web = web
        self._segments = {_first(getattr(route, "path", "")) for route in web.routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_page = scope["type"] != "lifespan" and _first(scope["path"]) in self._segments
        await (self._web if is_page else self._api)(scope, receive, send)


def _first(path: str) -> str:
    return path.strip("/").partition("/")[0]
