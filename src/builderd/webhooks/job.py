"""Deliveries of events to webhooks: at least once, over restarts.

First each event becomes a delivery of each webhook that wants it, in the transaction that advances the webhook's
cursor. Then due deliveries are claimed, sent outside of any transaction, and their results recorded. A process that is
killed in between leaves a claim that expires: the message is sent again, under the same id.

One task at a time serves a webhook, in the order of the events; a failing webhook delays no other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from builderd.application import Application
from builderd.core.errors import RETRY_AFTER, BuilderdError, MachineFault, StoreUnavailable
from builderd.core.ids import WebhookId
from builderd.core.loops import end_tasks
from builderd.database.connection import Kind
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import (
    SYSTEM,
    Attempt,
    Delivery,
    DeliveryStatus,
    Event,
    Webhook,
    WebhookStatus,
    associated_data_of,
    attempted,
    headers,
    new_delivery,
    payload,
)
from builderd.events.store import EventQuery
from builderd.tokens.port import Reply
from builderd.webhooks import service as webhooks

#: Seconds after which events of other processes are found, and the least between two looks.
LOOK_INTERVAL, LEAST_INTERVAL = 1.0, 0.2
#: Longer than sending takes: after this another task may send a claimed delivery.
CLAIM = timedelta(seconds=60)
#: Webhooks that are served at the same time, and messages that one gets before another's turn.
MAX_TASKS, BATCH = 32, 50
#: Events that are made into deliveries at once; a webhook with so many waiting gets no more of them until then.
PAGE, MAX_PENDING = 100, 1_000

log = logging.getLogger(__name__)


class WebhookJob:
    """``run`` continues until it is cancelled; what is being sent then is sent again later."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._concurrency = asyncio.Semaphore(MAX_TASKS)
        self._served: dict[WebhookId, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Deliver events as they happen, until cancelled."""
        kinds, intervals = (Kind.EVENTS, Kind.WEBHOOKS), {"interval": LOOK_INTERVAL, "pause": LEAST_INTERVAL}
        try:
            await self._app.store.call_after_writes(self.poll, *kinds, **intervals, event="webhook poll")
        finally:
            await end_tasks(*self._served.values())

    async def poll(self) -> None:
        """Make deliveries of new events, and serve the webhooks with due ones."""
        store, now, ended_by = self._app.store, self._app.clock.now(), self._app.clock.deletable()
        expired, undelivered, due = await store.read(
            lambda uow: (uow.webhooks.expired(ended_by), uow.webhooks.with_undelivered_events(), uow.webhooks.due(now))
        )
        if expired:
            await store.write(lambda uow: _disable(uow, expired, now))
        for webhook_id in undelivered:
            try:
                await self._fan_out(webhook_id)
            except StoreUnavailable:
                raise  # it says nothing of this webhook
            except Exception:
                log.warning("webhook fan-out failed webhook=%s", webhook_id, exc_info=True)
        if undelivered:
            now = self._app.clock.now()
            due = await store.read(lambda uow: uow.webhooks.due(now))
        for webhook_id in due:
            if webhook_id not in self._served:
                self._served[webhook_id] = asyncio.create_task(self._serve(webhook_id))

    async def rest(self) -> None:
        """Wait until the deliveries now under way have ended."""
        await asyncio.gather(*self._served.values())

    async def _fan_out(self, webhook_id: WebhookId) -> None:
        now = self._app.clock.now()

        def work(uow: UnitOfWork) -> None:
            webhook = uow.webhooks.get(webhook_id, lock=True)
            if webhook is None or uow.deliveries.pending(webhook_id) >= MAX_PENDING:
                return
            # In this order: what comes between the two is found the next time.
            last = uow.events.last_id(webhook.tenant_id)
            query = EventQuery(types=webhook.events)
            found = uow.events.following(webhook.tenant_id, query, after=webhook.place, limit=PAGE)
            for event in found:
                uow.deliveries.add(new_delivery(webhook, event, now))
            cursor = found[-1].id if found else webhook.place
            # Also what it does not want is behind it then, and is not looked through again.
            uow.webhooks.save(replace(webhook, place=cursor if len(found) == PAGE else max(cursor, last)))

        await self._app.store.write(work)

    async def _serve(self, webhook_id: WebhookId) -> None:
        try:
            async with self._concurrency:
                for _ in range(BATCH):
                    if not await self._deliver_next(webhook_id):
                        break
        except Exception:
            log.warning("webhook delivery failed webhook=%s", webhook_id, exc_info=True)
        finally:
            del self._served[webhook_id]

    async def _deliver_next(self, webhook_id: WebhookId) -> bool:
        """Send one message; return False when there is none, its delivery failed, or this machine cannot send now."""
        now = self._app.clock.now()
        claimed = await self._app.store.write(lambda uow: _claim(uow, webhook_id, now))
        if claimed is None:
            return False
        webhook, delivery, event = claimed
        begun, at = time.monotonic(), self._app.clock.now()
        try:
            reply = await self._send(webhook, delivery, event)
        except MachineFault as fault:
            until = self._app.clock.now() + timedelta(seconds=fault.retry_after or RETRY_AFTER)
            log.warning("webhook delivery postponed webhook=%s until=%s error=%s", webhook_id, until, fault.message)
            await self._app.store.write(lambda uow: _postpone(uow, delivery, until))
            return False
        attempt = Attempt(at, reply.status, round(time.monotonic() - begun, 3), reply.note)
        await self._app.store.write(lambda uow: _record(uow, delivery, attempt))
        return attempt.ok

    async def _send(self, webhook: Webhook, delivery: Delivery, event: Event | None) -> Reply:
        if event is None:
            return Reply(None, "the event is no longer kept")
        try:
            secret = self._app.vault.open(webhook.secret, associated_data_of(webhook)).decode()
        except BuilderdError as error:
            return Reply(None, f"not sent: {error.message}")
        body = payload(event)
        signed = headers(delivery.id, self._app.clock.now(), body, secret)
        return await self._app.webhooks.post(webhook.url, signed, body)


def _disable(uow: UnitOfWork, expired: Sequence[WebhookId], now: datetime) -> None:
    for webhook_id in expired:
        webhooks.disable(uow, webhook_id, SYSTEM, "the token that made it has expired", now)


def _claim(uow: UnitOfWork, webhook_id: WebhookId, now: datetime) -> tuple[Webhook, Delivery, Event | None] | None:
    webhook = uow.webhooks.get(webhook_id)
    if webhook is None or webhook.status is not WebhookStatus.ACTIVE:
        return None
    if webhook.held_until is not None and webhook.held_until > now:
        return None
    delivery = uow.deliveries.claim(webhook_id, now, now + CLAIM)
    if delivery is None:
        return None
    return webhook, delivery, uow.events.get(delivery.event_id)


def _postpone(uow: UnitOfWork, claimed: Delivery, until: datetime) -> None:
    """Send it and those after it later: a fault of this machine says nothing about the receiver, and is no attempt."""
    webhook = uow.webhooks.get(claimed.webhook_id, lock=True)
    delivery = uow.deliveries.get(claimed.id)
    if webhook is None or delivery is None or delivery.status is not DeliveryStatus.PENDING:
        return
    uow.webhooks.save(replace(webhook, held_until=until))
    uow.deliveries.save(replace(delivery, due_at=claimed.due_at))


def _record(uow: UnitOfWork, claimed: Delivery, attempt: Attempt) -> None:
    """Record the result on the present rows: the webhook may be deleted, or another task have delivered it."""
    webhook = uow.webhooks.get(claimed.webhook_id, lock=True)
    delivery = uow.deliveries.get(claimed.id)
    if webhook is None or delivery is None or delivery.status is not DeliveryStatus.PENDING:
        return
    after, tried = attempted(webhook, delivery, attempt)
    uow.webhooks.save(after)
    uow.deliveries.save(tried)
    if after.status is WebhookStatus.DISABLED and webhook.status is WebhookStatus.ACTIVE:
        webhooks.disabled(uow, after, SYSTEM, attempt.at)
