"""Webhooks: created, listed, removed. ``webhooks/job`` delivers events to them."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from builderd.application import Application
from builderd.builders.service import Caller
from builderd.core.errors import NotFound, QuotaExceeded, ValidationFailed
from builderd.core.ids import TenantId, WebhookId, is_id, new_id
from builderd.database.unit_of_work import UnitOfWork
from builderd.events import model as domain
from builderd.events.model import (
    MAX_WEBHOOKS,
    SECRET_PREFIX,
    Delivery,
    Event,
    Webhook,
    WebhookStatus,
    associated_data_of,
)
from builderd.tokens import service as tokens
from builderd.tokens.port import Vault

NEW_KEY_BYTES = 32


def create(
    uow: UnitOfWork,
    application: Application,
    caller: Caller,
    url: str,
    events: Sequence[str],
    secret: str | None,
    now: datetime,
) -> tuple[Webhook, str]:
    """Store the webhook with its secret (None: one is generated); it receives events from now on.

    Raises ``ValidationFailed`` for an address in a local network, and ``QuotaExceeded``.
    """
    if application.webhooks.refuses(url):
        raise ValidationFailed({"url": ["must lead to a public address; the operator may allow others"]})
    tokens.require_unrevoked(uow, caller.token_id)
    if len(uow.webhooks.list(caller.tenant_id)) >= MAX_WEBHOOKS:
        raise QuotaExceeded(f"There are {MAX_WEBHOOKS} webhooks already: delete one first.")
    made_up = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(NEW_KEY_BYTES)).decode()
    webhook_id, secret = WebhookId(new_id()), secret or made_up
    webhook = Webhook(
        id=webhook_id,
        tenant_id=caller.tenant_id,
        url=url,
        events=tuple(events),
        secret=application.vault.seal(secret.encode(), associated_data_of(webhook_id)),
        created_at=now,
        created_by=caller.actor,
        place=0,
        token_id=caller.token_id,
        expires_at=caller.expires_at,
    )
    # The event is recorded first, so that the webhook does not receive its own creation.
    event = uow.events.add(_event(webhook, "webhook.created", caller.actor, f"created by {caller.actor}", now))
    placed = replace(webhook, place=event.id)
    uow.webhooks.add(placed)
    return placed, secret


def get(uow: UnitOfWork, tenant_id: TenantId, webhook_id: str, *, lock: bool = False) -> Webhook:
    """Return the webhook. Raises ``NotFound`` alike for a foreign, unknown or malformed id."""
    webhook = uow.webhooks.get(WebhookId(webhook_id), lock=lock) if is_id(webhook_id) else None
    if webhook is None or webhook.tenant_id != tenant_id:
        raise NotFound("There is no webhook of this id: list yours with GET /api/v1/webhooks.")
    return webhook


def delete(uow: UnitOfWork, caller: Caller, webhook_id: str, now: datetime) -> Webhook:
    """Delete the webhook with its deliveries, pending ones included. Raises ``NotFound``."""
    # Locked before its deliveries are deleted, so that none is made or recorded meanwhile.
    webhook = get(uow, caller.tenant_id, webhook_id, lock=True)
    uow.webhooks.delete(webhook.id)
    uow.events.add(_event(webhook, "webhook.deleted", caller.actor, f"deleted by {caller.actor}", now))
    return webhook


def deliveries(
    uow: UnitOfWork, tenant_id: TenantId, webhook_id: str, *, page: int, per_page: int
) -> tuple[Sequence[Delivery], int]:
    """Return a page of its deliveries, newest first, and their number. Raises ``NotFound``."""
    webhook = get(uow, tenant_id, webhook_id)
    return uow.deliveries.page(webhook.id, page=page, per_page=per_page)


def disable(uow: UnitOfWork, webhook_id: WebhookId, actor: str, reason: str, now: datetime) -> None:
    """End the webhook: it gets no deliveries any more. Idempotent."""
    webhook = uow.webhooks.get(webhook_id, lock=True)
    if webhook is not None and webhook.status is WebhookStatus.ACTIVE:
        ended = domain.disabled(webhook, reason)
        uow.webhooks.save(ended)
        disabled(uow, ended, actor, now)


def disabled(uow: UnitOfWork, webhook: Webhook, actor: str, now: datetime) -> None:
    """Record the event for the tenant; its other webhooks receive it."""
    uow.events.add(_event(webhook, "webhook.disabled", actor, webhook.status_reason, now))


def reseal(uow: UnitOfWork, vault: Vault) -> int:
    """Seal secrets that an earlier key sealed with the present one; return their number."""
    stale = [one.id for one in uow.webhooks.all() if not vault.is_current(one.secret)]
    for webhook_id in stale:
        # Read again: its cursor may have advanced meanwhile, and moving it back would deliver events twice.
        webhook = uow.webhooks.get(webhook_id, lock=True)
        if webhook is not None:
            place = associated_data_of(webhook)
            uow.webhooks.save(replace(webhook, secret=vault.seal(vault.open(webhook.secret, place), place)))
    return len(stale)


def _event(webhook: Webhook, kind: str, actor: str, reason: str, now: datetime) -> Event:
    details = {"webhook": webhook.id, "url": webhook.url}
    return Event(webhook.tenant_id, None, now, kind, actor, reason, details)
