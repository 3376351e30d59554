"""Webhooks get every event at least once, in order, over restarts, and a slow one delays no other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from tests.application import World, fake_world
from tests.contract.store.samples import make_event
from tests.fakes.webhooks import FakeWebhookSender

from builderd.builders.service import Caller
from builderd.core.errors import MachineFault
from builderd.core.ids import BuilderId, WebhookId
from builderd.events.model import MAX_ATTEMPTS, Delivery, DeliveryStatus, Event, Webhook, WebhookStatus, sign
from builderd.tokens.port import Reply
from builderd.webhooks import job as delivering
from builderd.webhooks import service as webhooks
from builderd.webhooks.job import CLAIM, WebhookJob

URL, OTHER = "https://example.com/one", "https://example.com/two"
SECRET = "a secret of the right length"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with fake_world() as world:
        yield world


def sender(world: World) -> FakeWebhookSender:
    assert isinstance(world.application.webhooks, FakeWebhookSender)
    return world.application.webhooks


async def hook(world: World, url: str = URL, *events: str, caller: Caller | None = None) -> Webhook:
    by, now = caller or world.caller, world.clock.now()
    made, _ = await world.application.store.write(
        lambda uow: webhooks.create(uow, world.application, by, url, events or ("*",), SECRET, now)
    )
    return made


async def happen(world: World, kind: str = "builder.status", caller: Caller | None = None) -> Event:
    tenant = (caller or world.caller).tenant_id
    event = make_event(BuilderId(""), tenant_id=tenant, builder_id=None, type=kind, time=world.clock.now())
    return await world.application.store.write(lambda uow: uow.events.add(event))


async def deliver(world: World, deliveries: WebhookJob | None = None) -> None:
    """All that is due now."""
    deliveries = deliveries or WebhookJob(world.application)
    await deliveries.poll()
    await deliveries.rest()


async def log_of(world: World, webhook: Webhook) -> list[Delivery]:
    found, _ = await world.read(lambda uow: uow.deliveries.page(webhook.id, page=1, per_page=1000))
    return list(found)[::-1]


async def now_of(world: World, webhook: Webhook) -> Webhook:
    found = await world.read(lambda uow: uow.webhooks.get(webhook.id))
    assert found is not None
    return found


def told(world: World) -> list[int]:
    """The events, as they were sent."""
    return [json.loads(body)["data"]["id"] for _, _, body in sender(world).sent]


async def test_an_event_is_sent_once_and_signed_with_the_webhooks_secret(world: World) -> None:
    webhook, event = await hook(world), await happen(world)
    await deliver(world)
    await deliver(world)
    ((url, headers, body),) = sender(world).sent
    assert (url, told(world)) == (URL, [event.id])
    assert headers["Webhook-Signature"] == sign(headers["Webhook-Id"], headers["Webhook-Timestamp"], body, SECRET)
    (delivery,) = await log_of(world, webhook)
    assert (delivery.id, delivery.status) == (headers["Webhook-Id"], DeliveryStatus.DELIVERED)
    assert [attempt.status for attempt in delivery.attempts] == [200]


async def test_unwanted_old_and_foreign_events_are_not_sent(world: World) -> None:
    other = await world.tenant("other")
    await happen(world)
    await hook(world, URL, "stage.*", "webhook.deleted")
    await happen(world)
    await happen(world, "stage.started", caller=other)
    wanted = await happen(world, "stage.started")
    await deliver(world)
    assert told(world) == [wanted.id]


async def test_events_come_in_their_order_however_many_there_are(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivering, "PAGE", 3)
    monkeypatch.setattr(delivering, "BATCH", 2)
    await hook(world)
    events = [(await happen(world)).id for _ in range(10)]
    for _ in range(10):
        await deliver(world)
    assert told(world) == events


async def test_a_failed_message_is_sent_again_under_its_id_when_it_is_time(world: World) -> None:
    webhook, event = await hook(world), await happen(world)
    sender(world).replies[URL] = [Reply(500, "oops"), Reply(None, "no answer")]
    await deliver(world)
    await deliver(world)
    assert told(world) == [event.id], "it is not time yet"
    world.clock.move(5)
    await deliver(world)
    world.clock.move(30)
    await deliver(world)
    assert told(world) == [event.id] * 3
    assert len({headers["Webhook-Id"] for _, headers, _ in sender(world).sent}) == 1
    assert len({headers["Webhook-Signature"] for _, headers, _ in sender(world).sent}) == 3
    (delivery,) = await log_of(world, webhook)
    assert [(attempt.status, attempt.note) for attempt in delivery.attempts] == [
        (500, "oops"),
        (None, "no answer"),
        (200, ""),
    ]


async def test_interrupted_delivery_is_sent_again(world: World) -> None:
    webhook, event = await hook(world), await happen(world)
    stuck = asyncio.Event()

    @dataclass
    class Dying(FakeWebhookSender):
        async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
            stuck.set()
            await asyncio.sleep(3600)
            raise AssertionError

        sent: Any = None
        replies: Any = None
        refused: Any = None

    dying = WebhookJob(replace(world.application, webhooks=Dying()))
    running = asyncio.create_task(dying.run())
    await stuck.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await deliver(world)
    assert told(world) == [], "somebody may still be sending it"
    world.clock.move(CLAIM.total_seconds())
    await deliver(world)
    assert told(world) == [event.id]
    (delivery,) = await log_of(world, webhook)
    assert delivery.status is DeliveryStatus.DELIVERED


async def test_one_of_two_control_planes_sends_a_message(world: World) -> None:
    await hook(world)
    events = [(await happen(world)).id for _ in range(30)]
    one, two = WebhookJob(world.application), WebhookJob(world.another().application)
    for _ in range(4):
        await asyncio.gather(deliver(world, one), deliver(world, two))
    assert sorted(told(world)) == events


async def test_failing_webhook_is_disabled_with_an_event(world: World) -> None:
    dead, alive = await hook(world), await hook(world, OTHER, "webhook.disabled")
    sender(world).replies[URL] = [Reply(500, "")] * 100
    await happen(world)
    for _ in range(200):
        await deliver(world)
        world.clock.move(1_800)
    delivery = (await log_of(world, dead))[0]
    assert (delivery.status, len(delivery.attempts)) == (DeliveryStatus.GIVEN_UP, MAX_ATTEMPTS)
    assert (await now_of(world, dead)).status is WebhookStatus.DISABLED
    await deliver(world)
    ((_, _, body),) = [sent for sent in sender(world).sent if sent[0] == OTHER]
    assert json.loads(body)["data"]["details"] == {"webhook": dead.id, "url": URL}
    sent = len(sender(world).sent)
    await happen(world)
    world.clock.move(86_400)
    await deliver(world)
    assert len(sender(world).sent) == sent, "nothing is sent to who is disabled"
    assert (await now_of(world, alive)).status is WebhookStatus.ACTIVE


async def test_while_a_webhook_fails_its_other_messages_wait(world: World) -> None:
    await hook(world)
    events = [(await happen(world)).id for _ in range(5)]
    sender(world).replies[URL] = [Reply(503, "")]
    for _ in range(3):
        await deliver(world)
    assert told(world) == events[:1]
    world.clock.move(5)
    await deliver(world)
    assert sorted(told(world)) == sorted([events[0], *events])


async def test_machine_fault_postpones_deliveries_without_an_attempt(world: World) -> None:
    webhook = await hook(world)
    events = [(await happen(world)).id for _ in range(3)]
    sender(world).faults = [MachineFault("too many files open", retry_after=30)] * 20
    for _ in range(20):
        await deliver(world)
        world.clock.move(30)
    assert told(world) == []
    await deliver(world)
    assert told(world) == events
    assert [len(delivery.attempts) for delivery in await log_of(world, webhook)] == [1, 1, 1]
    assert (await now_of(world, webhook)).failures == 0


async def test_unresponsive_webhook_does_not_delay_others(world: World) -> None:
    await hook(world)
    await hook(world, OTHER)
    forever, sent = asyncio.Event(), sender(world).post

    async def post(url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if url == URL:
            await forever.wait()
        return await sent(url, headers, body)

    sender(world).post = post  # type: ignore[method-assign]
    running = asyncio.create_task(WebhookJob(world.application).run())
    for _ in range(3):
        await happen(world)
    await world.until(lambda: len(told(world)) == 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_webhook_far_behind_gets_no_new_messages_until_some_are_delivered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "MAX_PENDING", 2)
    monkeypatch.setattr(delivering, "PAGE", 2)
    webhook = await hook(world)
    events = [(await happen(world)).id for _ in range(7)]
    sender(world).replies[URL] = [Reply(500, "")] * 3
    for _ in range(5):
        await deliver(world)
    assert len(await log_of(world, webhook)) == 2
    for _ in range(10):
        world.clock.move(60)
        await deliver(world)
    assert sorted(set(told(world))) == events


async def test_deleted_webhook_gets_no_message_and_a_delivery_under_way_does_no_harm(world: World) -> None:
    webhook = await hook(world)
    await happen(world)
    sent = sender(world).post

    async def post(url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        await world.application.store.write(
            lambda uow: webhooks.delete(uow, world.caller, webhook.id, world.clock.now())
        )
        return await sent(url, headers, body)

    sender(world).post = post  # type: ignore[method-assign]
    await happen(world)
    await deliver(world)
    assert len(told(world)) == 1
    assert await world.read(lambda uow: uow.webhooks.get(WebhookId(webhook.id))) is None
    assert await log_of(world, webhook) == []


async def test_failing_fan_out_does_not_delay_other_webhooks(world: World) -> None:
    broken = await hook(world)
    await happen(world)
    await deliver(world)
    # Its place went back: what it was told of already is in its way.
    await world.application.store.write(lambda uow: uow.webhooks.save(broken))
    await hook(world, OTHER)
    event = await happen(world)
    await deliver(world)
    assert [(url, json.loads(body)["data"]["id"]) for url, _, body in sender(world).sent[1:]] == [(OTHER, event.id)]


async def test_a_webhook_ends_when_its_token_expires(world: World) -> None:
    end = world.clock.now() + timedelta(hours=1)
    brief = await hook(world, URL, caller=replace(world.caller, expires_at=end))
    other = await hook(world, OTHER)
    world.clock.move(3_599)
    await happen(world)
    await deliver(world)
    world.clock.move(1)
    await deliver(world)
    seen = {one.id: one for one in await world.read(lambda uow: uow.webhooks.all())}
    assert (seen[brief.id].status, seen[other.id].status) == (WebhookStatus.DISABLED, WebhookStatus.ACTIVE)
    assert seen[brief.id].status_reason == "the token that made it has expired"
    await happen(world)
    await deliver(world)
    bodies = {
        url: [json.loads(body)["type"] for one, _, body in sender(world).sent if one == url] for url in (URL, OTHER)
    }
    assert bodies[URL].count("builder.status") == 1
    assert bodies[OTHER].count("builder.status") == 2
    assert bodies[OTHER].count("webhook.disabled") == 1
