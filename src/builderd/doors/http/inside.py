"""The API as seen from inside a sandbox: its own builder, and nothing else.

An app is handed its service token and this address (``BUILDERD_URL``). Nothing else of the service is served
on it, so that no fault of another call can be reached from there.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Request, Response

from builderd.domain.builders import Builder
from builderd.domain.errors import NotFound, Unauthenticated
from builderd.doors.http.answers import success
from builderd.doors.http.app import bare_app
from builderd.doors.http.auth import Credentials, TheApplication, recognize, secret_of
from builderd.doors.http.health import healthz
from builderd.doors.http.meter import Meter
from builderd.doors.http.v1 import PREFIX
from builderd.doors.http.v1.shown import look
from builderd.services.application import Application
from builderd.wire.v1.builders import BuilderAnswer


def create_inside_app(application: Application, meter: Meter | None = None) -> FastAPI:
    """Served on the sandboxes' gateway."""
    app = bare_app(application, meter or Meter())
    app.add_api_route(f"{PREFIX}/builders/{{uuid}}", get_own_builder, include_in_schema=False)
    app.add_api_route("/healthz", healthz, include_in_schema=False)
    return app


async def own_builder(request: Request, application: TheApplication, credentials: Credentials) -> Builder:
    """The builder whose service token this is. Raises ``Unauthenticated`` and ``RateLimited``."""
    secret = secret_of(credentials)

    async def look() -> Builder:
        builder = await application.store.read(lambda uow: uow.builders.by_service_token(secret))
        if builder is None:
            raise Unauthenticated("This is not the service token of a builder.")
        return builder

    return await recognize(request, secret, look)


async def get_own_builder(
    uuid: str, application: TheApplication, own: Annotated[Builder, Depends(own_builder)]
) -> Response:
    """The builder itself; any other uuid is as unknown as one that does not exist."""
    if uuid.lower() != own.id:
        raise NotFound("A service token reads its own builder alone.")
    data = await look(application, own, with_token=True)
    return success(BuilderAnswer(message=f"{data.name} is {data.status}.", data=data)).response()
