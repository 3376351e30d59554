"""The calls that a service which stands by answers itself: about its health, and all others while it passes none on."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from builderd import __version__
from builderd.api.server.answers import failure, success
from builderd.api.server.paths import PREFIX
from builderd.domain.errors import EngineUnavailable, NotFound, Unauthenticated
from builderd.schemas.v1.health import Health, HealthAnswer, Part, Readiness, ReadinessAnswer

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
#: Of a call that is not passed on, in seconds: a take-over takes some thirty.
RETRY_AFTER = 5


@dataclass(frozen=True, slots=True)
class Way:
    """Knowledge of a standby about the service that works. ``fault`` keeps calls from it, "" for nothing.

    ``worker`` is its host, None before it is known; ``readiness`` its own answer, as JSON.
    """

    worker: str | None = None
    fault: str = "the service that works is not known yet"
    readiness: Mapping[str, Any] = field(default_factory=dict)

    @property
    def part(self) -> Part:
        return Part(ready=not self.fault, message=self.fault or "calls and visitors are passed on")


def create_standby_app(way: Callable[[], Way], metrics_token: str | None = None) -> Starlette:
    """Return the app. Its calls need no token, but for ``/metrics``."""

    async def healthz(_: Request) -> Response:
        now = way()
        data = Health(version=__version__, role="standby", worker=now.worker, way=now.part)
        return success(
            HealthAnswer(message=f"builderd is alive and stands by. {_described(now)}", data=data)
        ).response()

    async def readyz(_: Request) -> Response:
        now = way()
        state = _readiness(now)
        vital = {"database": state.database, "engine": state.engine, "previews": state.previews}
        waiting = [f"{name}: {part.message}" for name, part in vital.items() if not part.ready]
        if not now.fault and not waiting:
            return success(ReadinessAnswer(message=_described(now), data=state)).response()
        reason = _described(now) if now.fault else f"The service on {now.worker} is not ready yet. {'; '.join(waiting)}"
        data = state.model_dump(mode="json")
        return failure(EngineUnavailable(reason, data=data, retry_after=RETRY_AFTER)).response()

    async def metrics(request: Request) -> Response:
        if metrics_token is None:
            return failure(NotFound("Metrics are not shown here: set a metrics token.")).response()
        given = request.headers.get("authorization", "").encode(errors="replace")
        if not hmac.compare_digest(given, f"Bearer {metrics_token}".encode()):
            return failure(Unauthenticated("This is not the metrics token.")).response()
        return _metrics(way())

    async def refuse(_: Request) -> Response:
        return failure(EngineUnavailable(_described(way()), retry_after=RETRY_AFTER)).response()

    health = [
        Route(f"{prefix}{path}", call)
        for prefix in ("", PREFIX)
        for path, call in (("/healthz", healthz), ("/readyz", readyz))
    ]
    return Starlette(routes=[*health, Route("/metrics", metrics), Route("/{path:path}", refuse, methods=METHODS)])


def create_standby_metrics(way: Callable[[], Way]) -> Starlette:
    """Return the app for ``metrics_port``, which only the operator reaches."""

    async def metrics(_: Request) -> Response:
        return _metrics(way())

    return Starlette(routes=[Route("/metrics", metrics)])


def _described(way: Way) -> str:
    worker = f"the service on {way.worker}" if way.worker else "another service of its cluster"
    if not way.fault:
        return f"This service stands by, and passes calls and visitors on to {worker}, which works."
    return f"This service stands by for {worker}, and passes nothing on now: {way.fault}."


def _readiness(way: Way) -> Readiness:
    """Return the worker's own readiness, or that it is not known."""
    unknown = Part(ready=False, message=f"not known: {way.fault or 'the service that works does not say'}")
    about = {"role": "standby", "worker": way.worker, "way": way.part}
    parts = dict.fromkeys(("database", "engine", "previews", "public_url"), unknown)
    if not way.fault:
        known = {name: value for name, value in way.readiness.items() if name in parts}
        try:
            return Readiness.model_validate({**parts, **known, **about})
        except ValidationError:
            pass
    return Readiness.model_validate({**parts, **about})


def _metrics(way: Way) -> Response:
    text = f"""\
# HELP builderd_standby 1 on a service that stands by in its cluster.
# TYPE builderd_standby gauge
builderd_standby 1
# HELP builderd_standby_way_up 1 while a standby reaches the service that works, so that it passes calls on.
# TYPE builderd_standby_way_up gauge
builderd_standby_way_up {int(not way.fault)}
"""
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)
