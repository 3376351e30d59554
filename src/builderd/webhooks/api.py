"""Webhooks: make, list, delete, and see what was delivered."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from builderd.events.model import Delivery, DeliveryStatus
from builderd.schemas import account as wire
from builderd.schemas.shape import Page, Success
from builderd.server import openapi
from builderd.server.answers import PREFIX, success
from builderd.server.auth import Reader, TheApplication, Writer
from builderd.server.bodies import Received, json_body
from builderd.server.pages import Listing, ThePage, listed, page_of
from builderd.webhooks import service as webhooks

router = APIRouter(prefix=PREFIX, tags=[openapi.WATCHING])

MAX_BODY_BYTES = 100_000

Body = Annotated[Received[wire.NewWebhook], Depends(json_body(wire.NewWebhook, MAX_BODY_BYTES))]
WebhookUuid = Annotated[str, Path(description="The webhook's id.", json_schema_extra={"format": "uuid"})]

EXAMPLE = {"url": "https://example.com/hooks/builderd", "events": ["builder.status", "stage.*"]}


@router.post(
    "/webhooks",
    status_code=201,
    responses=openapi.answers(201, wire.NewWebhookAnswer, "It receives events from now on.", 400, 413, 422, 429),
    openapi_extra=openapi.body_of(wire.NewWebhook, EXAMPLE),
)
async def create_webhook(application: TheApplication, identity: Writer, body: Body) -> Response:
    """Create a webhook: events are sent to a URL of yours, signed as in Standard Webhooks.

    The secret is shown this once.
    """
    now = application.clock.now()
    new = body.value
    webhook, secret = await application.store.write(
        lambda uow: webhooks.create(uow, application, identity.caller, new.url, new.events, new.secret, now)
    )
    data = wire.WebhookWithSecret.of(webhook, secret=secret)
    message = "The webhook is made; keep its secret, which is not shown again."
    return success(wire.NewWebhookAnswer(message=message, data=data), 201).response()


@router.get("/webhooks", responses=openapi.answers(200, Page[wire.Webhook], "A page of them.", 422))
async def list_webhooks(application: TheApplication, identity: Reader, query: ThePage) -> Response:
    """List your webhooks, without their secrets, the oldest first."""
    found = await application.store.read(lambda uow: uow.webhooks.list(identity.token.tenant_id))
    data = [wire.Webhook.of(webhook) for webhook in query.cut(found)]
    message = f"{len(found)} webhooks."
    return success(Page[wire.Webhook](message=message, data=data, meta=query.of(len(found)))).response()


@router.delete("/webhooks/{id}", responses=openapi.answers(200, Success[wire.Webhook], "It is gone.", 404))
async def delete_webhook(
    application: TheApplication, identity: Writer, webhook_id: Annotated[WebhookUuid, Path(alias="id")]
) -> Response:
    """Delete a webhook. Its pending deliveries are dropped."""
    now = application.clock.now()
    webhook = await application.store.write(lambda uow: webhooks.delete(uow, identity.caller, webhook_id.lower(), now))
    return success(Success[wire.Webhook](message="The webhook is gone.", data=wire.Webhook.of(webhook))).response()


@router.get(
    "/webhooks/{id}/deliveries", responses=openapi.answers(200, Page[wire.Delivery], "A page of them.", 404, 422)
)
async def list_deliveries(
    request: Request,
    application: TheApplication,
    identity: Reader,
    webhook_id: Annotated[WebhookUuid, Path(alias="id")],
    query: ThePage,
) -> Response:
    """List a webhook's deliveries, sent and pending, with its answers, the newest event first."""
    tenant_id = identity.token.tenant_id

    async def listing() -> Listing:
        found, total = await application.store.read(
            lambda uow: webhooks.deliveries(
                uow, tenant_id, webhook_id.lower(), page=query.page, per_page=query.per_page
            )
        )
        return page_of(f"{len(found)} of {total} deliveries.", query.of(total), map(_delivery, found))

    return await listed(request, tenant_id, listing)


def _delivery(delivery: Delivery) -> wire.Delivery:
    due_at = delivery.due_at if delivery.status is DeliveryStatus.PENDING else None
    return wire.Delivery.of(delivery, event=delivery.event_id, type=delivery.event_type, next_attempt_at=due_at)
