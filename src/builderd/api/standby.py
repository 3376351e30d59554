"""The API of a service that stands by: it is alive, and another one works."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from builderd import __version__
from builderd.api.server.answers import failure, success
from builderd.api.server.paths import PREFIX
from builderd.domain.errors import EngineUnavailable
from builderd.schemas.v1.health import Health, HealthAnswer

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
#: Of every other call, in seconds: a take-over takes some thirty.
RETRY_AFTER = 5


def create_standby_app() -> Starlette:
    """Return the app. It needs no token, so it names no machine."""

    async def healthz(_: Request) -> Response:
        return success(HealthAnswer(message="builderd is alive.", data=Health(version=__version__))).response()

    async def refuse(_: Request) -> Response:
        message = (
            "This service stands by: another one of its cluster works. Call that one; builderd doctor names it on each "
            "machine of the cluster."
        )
        return failure(EngineUnavailable(message, retry_after=RETRY_AFTER)).response()

    health = [Route(f"{prefix}/healthz", healthz) for prefix in ("", PREFIX)]
    return Starlette(routes=[*health, Route("/{path:path}", refuse, methods=METHODS)])
