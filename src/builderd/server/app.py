"""The HTTP app: the contract's calls on one application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response

from builderd.application import Application
from builderd.backups import api as backups
from builderd.builders import api as builders
from builderd.code import api as uploads
from builderd.credentials import api as credentials
from builderd.domains import api as domains
from builderd.executions import api as executions
from builderd.files import api as files
from builderd.idle import api as leases
from builderd.logs import api as logs
from builderd.metrics import api as metrics
from builderd.money import api as spending
from builderd.qa import api as qa
from builderd.server import docs_page, health, middleware, openapi
from builderd.server.answers import PREFIX
from builderd.server.limits import TENANTS_AT_ONCE, Turns
from builderd.server.meter import Meter
from builderd.server.middleware import HeadAsGet, Masking, RequestLog
from builderd.server.operations import Operations
from builderd.server.rates import Rates
from builderd.tokens import api as tokens
from builderd.versions import api as versions
from builderd.webhooks import api as webhooks


def create_app(operations: Operations, *, metrics_token: str | None = None, meter: Meter | None = None) -> FastAPI:
    """The API. ``metrics_token`` None shows no metrics here; ``meter`` is shared with ``metrics_app``."""
    meter = meter or Meter()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await operations.close()

    app = bare_app(operations.application, meter, lifespan=lifespan, openapi_url="/openapi.json")
    app.state.operations = operations
    app.state.rates = operations.rates
    app.state.metrics_token = metrics_token
    app.state.encoding = Turns(TENANTS_AT_ONCE)
    # Before the builders, among whose paths /builders/spending would be taken for one of their uuids.
    for noun in (
        health,
        spending,
        builders,
        versions,
        logs,
        metrics,
        executions,
        leases,
        domains,
        qa,
        files,
        credentials,
        tokens,
        webhooks,
        uploads,
        backups,
    ):
        app.router.routes.extend(noun.router.routes)
    app.router.routes.extend(executions.terminal_router.routes)
    # For clients that put the base path before everything.
    app.include_router(health.router, prefix=PREFIX, include_in_schema=False)
    docs_page.install(app)
    openapi.install(app, operations.application.limits.maximum)
    return app


def metrics_app(application: Application, meter: Meter) -> FastAPI:
    """Metrics without a token, for a listener of their own that only the operator reaches."""
    app = bare_app(application, meter)

    async def metrics() -> Response:
        return await health.render(meter, application)

    app.add_api_route("/metrics", metrics, include_in_schema=False)
    return app


def bare_app(application: Application, meter: Meter, **options: Any) -> FastAPI:
    """An app without calls, that answers every error in the envelope and logs every request."""
    options = {"docs_url": None, "redoc_url": None, "openapi_url": None, "redirect_slashes": False, **options}
    app = FastAPI(title="builderd", **options)
    app.state.application = application
    app.state.meter = meter
    app.state.rates = Rates()
    app.add_middleware(Masking, application=application)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestLog, meter=meter)
    middleware.install(app)
    return app
