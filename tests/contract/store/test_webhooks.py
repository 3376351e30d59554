"""Webhooks and deliveries as every store keeps them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import update
from tests.contract.store.samples import NOW, OTHER_TENANT, SECOND, TENANT, add, make_event, make_webhook

from builderd.core.ids import BuilderId, TenantId, TokenId, WebhookId, new_id
from builderd.database.unit_of_work import Store
from builderd.events.model import Attempt, Delivery, DeliveryStatus, Webhook, WebhookStatus
from builderd.events.store import deliveries

LATER = NOW + 60 * SECOND


async def added(store: Store, **changes: Any) -> Webhook:
    webhook = make_webhook(**changes)
    await store.write(lambda uow: uow.webhooks.add(webhook))
    return webhook


async def delivery(store: Store, webhook: Webhook, event: int, **changes: Any) -> Delivery:
    made = replace(Delivery(f"msg_{new_id()}", webhook.id, event, "builder.status", NOW, NOW), **changes)
    await store.write(lambda uow: uow.deliveries.add(made))
    return made


async def happen(store: Store, tenant: TenantId = TENANT.id) -> int:
    event = make_event(BuilderId(""), tenant_id=tenant, builder_id=None)
    return (await store.write(lambda uow: uow.events.add(event))).id


async def test_every_field_of_a_webhook_is_stored_and_changed(store: Store) -> None:
    webhook = await added(store)
    assert await store.read(lambda uow: uow.webhooks.get(webhook.id)) == webhook
    changed = replace(
        webhook,
        place=7,
        status=WebhookStatus.DISABLED,
        status_reason="\0",
        failures=3,
        held_until=LATER,
        last_success_at=NOW,
        token_id=TokenId("t"),
        expires_at=LATER,
    )
    await store.write(lambda uow: uow.webhooks.save(changed))
    assert await store.write(lambda uow: uow.webhooks.get(webhook.id, lock=True)) == replace(
        changed, status_reason="\ufffd"
    )


async def test_fields_that_a_later_version_stored_with_an_attempt_are_ignored(store: Store) -> None:
    webhook = await added(store)
    made = await delivery(store, webhook, await happen(store))
    attempt = {"at": NOW.isoformat(), "status": 204, "seconds": 0.5, "note": "", "address": "192.0.2.1"}

    def write(uow: Any) -> None:
        uow.deliveries._connection.execute(update(deliveries).values(attempts=[attempt]))

    await store.write(write)
    found = await store.read(lambda uow: uow.deliveries.get(made.id))
    assert found == replace(made, attempts=(Attempt(NOW, 204, 0.5, ""),))


async def test_webhook_has_undelivered_events_of_its_tenant_only(store: Store) -> None:
    await add(store, OTHER_TENANT)
    webhook = await added(store)
    await added(store, status=WebhookStatus.DISABLED)

    async def with_undelivered_events() -> list[WebhookId]:
        return list(await store.read(lambda uow: uow.webhooks.with_undelivered_events()))

    await happen(store, OTHER_TENANT.id)
    assert await with_undelivered_events() == []
    event = await happen(store)
    assert await with_undelivered_events() == [webhook.id]
    await store.write(lambda uow: uow.webhooks.save(replace(webhook, place=event)))
    assert await with_undelivered_events() == []


async def test_active_webhooks_of_an_expired_token_are_found(store: Store) -> None:
    over = await added(store, expires_at=NOW)
    for changes in ({}, {"expires_at": LATER}, {"expires_at": NOW, "status": WebhookStatus.DISABLED}):
        await added(store, **changes)
    assert await store.read(lambda uow: uow.webhooks.expired(NOW)) == [over.id]


async def test_webhook_is_due_unless_paused_or_disabled(store: Store) -> None:
    webhook = await added(store)

    async def due(at: int) -> bool:
        return webhook.id in await store.read(lambda uow: uow.webhooks.due(NOW + at * SECOND))

    assert not await due(0)
    made = await delivery(store, webhook, 1, due_at=NOW + SECOND)
    assert [await due(0), await due(1)] == [False, True]
    await store.write(lambda uow: uow.webhooks.save(replace(webhook, held_until=NOW + 5 * SECOND)))
    assert [await due(4), await due(5)] == [False, True]
    await store.write(lambda uow: uow.webhooks.save(replace(webhook, status=WebhookStatus.DISABLED)))
    assert not await due(9)
    await store.write(lambda uow: uow.webhooks.save(webhook))
    await store.write(lambda uow: uow.deliveries.save(replace(made, status=DeliveryStatus.DELIVERED)))
    assert not await due(9)


async def test_claimed_delivery_is_due_after_the_claim_expires(store: Store) -> None:
    webhook, other = await added(store), await added(store)
    await delivery(store, other, 1)
    second, first = await delivery(store, webhook, 2), await delivery(store, webhook, 1)

    async def claim(at: int) -> str | None:
        now = NOW + at * SECOND
        found = await store.write(lambda uow: uow.deliveries.claim(webhook.id, now, now + 10 * SECOND))
        return found.id if found else None

    assert [await claim(0), await claim(0), await claim(0)] == [first.id, second.id, None]
    assert await claim(9) is None
    assert await claim(10) == first.id
    assert await store.read(lambda uow: uow.deliveries.pending(webhook.id)) == 2


async def test_deliveries_keep_their_attempts_and_are_paged_newest_first(store: Store) -> None:
    webhook = await added(store)
    made = [await delivery(store, webhook, n) for n in (1, 2, 3)]
    attempts = (Attempt(NOW, None, 0.25, "no answer"), Attempt(LATER, 204, 1.5, "\N{SNOWMAN}"))
    changed = replace(made[0], attempts=attempts, status=DeliveryStatus.DELIVERED, due_at=LATER)
    await store.write(lambda uow: uow.deliveries.save(changed))
    assert await store.read(lambda uow: uow.deliveries.get(changed.id)) == changed
    page = await store.read(lambda uow: uow.deliveries.page(webhook.id, page=2, per_page=2))
    assert page == ([changed], 3)


async def test_deliveries_are_deleted_with_their_webhook(store: Store) -> None:
    webhook, other = await added(store), await added(store)
    gone, kept = await delivery(store, webhook, 1), await delivery(store, other, 1)
    await store.write(lambda uow: uow.webhooks.delete(webhook.id))
    assert await store.read(lambda uow: uow.webhooks.get(webhook.id)) is None
    assert await store.read(lambda uow: uow.deliveries.get(gone.id)) is None
    assert await store.read(lambda uow: uow.deliveries.get(kept.id)) == kept
    await store.write(lambda uow: uow.webhooks.save(webhook))
    assert await store.read(lambda uow: uow.webhooks.get(webhook.id)) is None


async def test_old_deliveries_expire_once_they_are_over(store: Store) -> None:
    webhook = await added(store)
    waiting = await delivery(store, webhook, 1)
    for event in (2, 3, 4):
        await delivery(store, webhook, event, status=DeliveryStatus.DELIVERED)
    fresh = await delivery(store, webhook, 5, status=DeliveryStatus.GIVEN_UP, created_at=LATER)

    async def expire() -> int:
        return await store.write(lambda uow: uow.deliveries.expire(LATER, 2))

    assert [await expire(), await expire(), await expire()] == [2, 1, 0]
    left, _ = await store.read(lambda uow: uow.deliveries.page(webhook.id, page=1, per_page=9))
    assert left == [fresh, waiting]
