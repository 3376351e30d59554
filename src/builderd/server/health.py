"""Health: liveness, readiness and metrics. No call here takes an API token."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from builderd.application import Application
from builderd.core.errors import EngineUnavailable, StoreUnavailable
from builderd.database.unit_of_work import Store
from builderd.domains.model import describe_public, public_name
from builderd.schemas.monitoring import Health, Part, Readiness
from builderd.schemas.shape import Success
from builderd.server import openapi
from builderd.server.answers import failure, success
from builderd.server.auth import Credentials, TheApplication, check_metrics_token
from builderd.server.meter import Meter
from builderd.server.starting import alive
from builderd.tokens.port import Vault

router = APIRouter(tags=[openapi.SERVICE])


@router.get("/healthz", responses={**openapi.answer(200, Success[Health], "It is alive."), **openapi.failures()})
async def healthz(application: TheApplication) -> Response:
    """Report whether the service is alive."""
    return alive(shows_money=application.prices.shown).response()


@router.get("/readyz", responses={**openapi.answer(200, Success[Readiness], "It can take work."), **openapi.failures()})
async def readyz(application: TheApplication) -> Response:
    """Report whether the service can take work; 503 names the parts that are not ready, and why."""
    state = await readiness(application)
    waiting = [f"{name}: {part.message}" for name, part in vital_parts(state).items() if not part.ready]
    if not waiting:
        warnings = {"public_url": state.public_url, "clock": state.clock}
        note = "".join(f" {name}: {part.message.rstrip('.')}." for name, part in warnings.items() if not part.ready)
        return success(Success[Readiness](message=f"builderd is ready.{note}", data=state)).response()
    message = f"builderd is not ready yet. {'; '.join(waiting)}"
    return failure(EngineUnavailable(message, data=state.model_dump(mode="json"), retry_after=1)).response()


def vital_parts(state: Readiness) -> dict[str, Part]:
    """Return the parts without which the service takes no work."""
    return {"database": state.database, "engine": state.engine, "previews": state.previews, "vault": state.vault}


async def readiness(application: Application) -> Readiness:
    """Return the state of every part that builders need."""
    engine, fault = application.engine.readiness(), application.clock.fault()
    previews = await application.previews.ready()
    return Readiness(
        database=await _database(application.store),
        engine=Part(ready=engine.ready, message=engine.message),
        previews=Part(ready=previews, message="the proxy answers" if previews else "the proxy does not answer"),
        vault=_describe_vault(application.vault),
        public_url=await _public_url(application),
        clock=Part(ready=not fault, message=fault or "it was not set since the start"),
    )


async def _public_url(application: Application) -> Part:
    """Return the state of the certificate that the service gets for ``public_url``."""
    host = application.domain_rules.public_host
    if host is None or not application.domain_rules.orders_public:
        return Part(ready=True, message="no certificate is to be ordered for it")
    try:
        stored = await application.store.read(lambda uow: uow.wildcard_certificates.get(public_name(host)))
    except StoreUnavailable as error:
        return Part(ready=False, message=error.message)
    ready, message = describe_public(host, stored, application.clock.now())
    return Part(ready=ready, message=message)


def _describe_vault(vault: Vault) -> Part:
    try:
        vault.check()
    except EngineUnavailable as error:
        return Part(ready=False, message=error.message)
    return Part(ready=True, message="its keys can be read")


async def _database(store: Store) -> Part:
    if not await store.ready():
        return Part(ready=False, message="it does not answer")
    differences = await store.schema_differences()
    return Part(ready=not differences, message="; ".join(differences) or "it answers")


@router.get(
    "/metrics",
    responses={
        200: {
            "description": "The text format of Prometheus.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **openapi.failures(401, 404),
    },
)
async def metrics(request: Request, application: TheApplication, credentials: Credentials) -> Response:
    """Return the counters for Prometheus; needs the metrics token."""
    await check_metrics_token(request, request.app.state.metrics_token, credentials)
    return await render(request.app.state.meter, application)


async def render(meter: Meter, application: Application) -> Response:
    """Return all metrics as a response in the text format of Prometheus."""
    return Response(await meter.render(application), media_type=CONTENT_TYPE_PLAIN_0_0_4)
