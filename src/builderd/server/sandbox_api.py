"""The API as seen from inside a sandbox: its own builder, and nothing else.

An app is handed its service token and this address (``BUILDERD_URL``). Nothing else of the service is served
on it, so that no fault of another call can be reached from there.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Request, Response

from builderd.application import Application
from builderd.builders.model import Builder
from builderd.builders.presenters import present_builder, read_view
from builderd.core.errors import NotFound, Unauthenticated
from builderd.database.unit_of_work import UnitOfWork
from builderd.idle import api as leases
from builderd.schemas.builder_parts import NewLease, RenewedLease
from builderd.schemas.builders import BuilderAnswer
from builderd.server.answers import PREFIX, success
from builderd.server.app import bare_app
from builderd.server.auth import Credentials, TheApplication, recognize, secret_of
from builderd.server.bodies import receive
from builderd.server.health import healthz
from builderd.server.limits import count_for_tenant
from builderd.server.meter import Meter
from builderd.server.pages import ThePage

#: How events name an app that acts on its own builder.
ACTOR = "app"


def create_sandbox_app(application: Application, meter: Meter | None = None) -> FastAPI:
    """Served on the sandboxes' gateway."""
    app = bare_app(application, meter or Meter())
    app.add_api_route(f"{PREFIX}/builders/{{uuid}}", get_own_builder, include_in_schema=False)
    of_own = f"{PREFIX}/builders/{{uuid}}/leases"
    app.add_api_route(of_own, list_own_leases, include_in_schema=False)
    app.add_api_route(of_own, take_own_lease, methods=["POST"], include_in_schema=False)
    app.add_api_route(f"{of_own}/{{lease}}", renew_own_lease, methods=["PUT"], include_in_schema=False)
    app.add_api_route(f"{of_own}/{{lease}}", end_own_lease, methods=["DELETE"], include_in_schema=False)
    app.add_api_route("/healthz", healthz, include_in_schema=False)
    return app


async def own_builder(request: Request, application: TheApplication, credentials: Credentials) -> Builder:
    """The builder whose service token this is. Raises ``Unauthenticated`` and ``RateLimited``."""
    secret = secret_of(credentials)

    async def lookup() -> Builder:
        builder = await application.store.read(lambda uow: uow.builders.by_service_token(secret))
        if builder is None:
            raise Unauthenticated("This is not the service token of a builder.")
        return builder

    builder = await recognize(request, secret, lookup)
    count_for_tenant(request, builder.tenant_id)
    return builder


async def named(uuid: str, own: Annotated[Builder, Depends(own_builder)]) -> Builder:
    """The builder itself; any other uuid is as unknown as one that does not exist."""
    if uuid.lower() != own.id:
        raise NotFound("A service token opens its own builder alone.")
    return own


Own = Annotated[Builder, Depends(named)]


async def get_own_builder(application: TheApplication, own: Own) -> Response:
    """The builder itself."""
    data = present_builder(await read_view(application, own), with_token=True)
    return success(BuilderAnswer(message=f"{data.name} is {data.status}.", data=data)).response()


async def list_own_leases(application: TheApplication, own: Own, query: ThePage) -> Response:
    """The leases that keep it busy."""
    return await leases.list_active(application, lambda _: own, query)


async def take_own_lease(request: Request, application: TheApplication, own: Own) -> Response:
    """Take a lease: the app says that it is busy, although nobody uses it."""
    body = await receive(request, application, NewLease, leases.MAX_LEASE_BYTES)
    return await leases.take_for(application, _locked(own), ACTOR, body.value)


async def renew_own_lease(request: Request, application: TheApplication, own: Own, lease: str) -> Response:
    """Renew a lease: the app is busy for longer."""
    body = await receive(request, application, RenewedLease, leases.MAX_LEASE_BYTES)
    return await leases.renew_for(application, _locked(own), lease, body.value)


async def end_own_lease(application: TheApplication, own: Own, lease: str) -> Response:
    """End a lease: the app is not busy any more."""
    return await leases.end_for(application, _locked(own), ACTOR, lease)


def _locked(own: Builder) -> leases.Find:
    def find(uow: UnitOfWork) -> Builder:
        builder = uow.builders.get(own.id, lock=True)
        assert builder is not None, "a builder's row stays"
        return builder

    return find
