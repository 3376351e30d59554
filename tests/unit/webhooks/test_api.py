"""Webhooks over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
from tests.fakes.webhooks import FakeWebhookSender
from tests.service import Service

from builderd.events.model import MAX_WEBHOOKS, key_of
from builderd.tokens.port import Reply
from builderd.webhooks.job import WebhookJob

HOOKS = "/api/v1/webhooks"
URL = "https://example.com/hook"


async def made(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post(HOOKS, json={"url": URL, **body})
    assert response.status_code == 201, response.text
    data: dict[str, Any] = response.json()["data"]
    return data


async def listed(client: httpx.AsyncClient, path: str = HOOKS) -> list[dict[str, Any]]:
    response = await client.get(path)
    assert response.status_code == 200, response.text
    data: list[dict[str, Any]] = response.json()["data"]
    return data


async def test_a_webhook_gets_a_secret_that_is_shown_once_and_kept_sealed(
    client: httpx.AsyncClient, service: Service
) -> None:
    hook = await made(client)
    assert len(key_of(hook["secret"])) == 32
    (shown,) = await listed(client)
    assert shown == {key: value for key, value in hook.items() if key != "secret"}
    assert (shown["events"], shown["status"], shown["failures"]) == (["*"], "active", 0)
    (stored,) = await service.application.store.read(lambda uow: uow.webhooks.all())
    assert hook["secret"].encode() not in stored.secret


async def test_ones_own_secret_and_events_are_taken(client: httpx.AsyncClient) -> None:
    hook = await made(client, secret="x" * 24, events=["builder.status", "stage.*"])
    assert (hook["secret"], hook["events"]) == ("x" * 24, ["builder.status", "stage.*"])


async def test_deliveries_are_listed_with_attempts(client: httpx.AsyncClient, service: Service) -> None:
    sender = service.application.webhooks
    assert isinstance(sender, FakeWebhookSender)
    sender.replies[URL] = [Reply(503, "busy")]
    hook = await made(client)
    await made(client)
    deliveries = WebhookJob(service.application)
    await deliveries.poll()
    await deliveries.rest()
    (delivery,) = await listed(client, f"{HOOKS}/{hook['id']}/deliveries")
    assert (delivery["type"], delivery["status"]) == ("webhook.created", "pending")
    assert delivery["next_attempt_at"] > delivery["created_at"]
    ((status, note),) = [(one["status"], one["note"]) for one in delivery["attempts"]]
    assert (status, note) == (503, "busy")
    assert sender.sent[0][1]["Webhook-Id"] == delivery["id"]


async def test_a_webhook_is_deleted_and_both_are_events(client: httpx.AsyncClient) -> None:
    hook = await made(client)
    assert (await client.delete(f"{HOOKS}/{hook['id']}")).status_code == 200
    assert await listed(client) == []
    assert (await client.delete(f"{HOOKS}/{hook['id']}")).status_code == 404
    events = await listed(client, "/api/v1/events")
    assert [(event["type"], event["builder"]) for event in events] == [
        ("webhook.deleted", None),
        ("webhook.created", None),
    ]
    assert events[0]["details"] == {"webhook": hook["id"], "url": URL}


async def test_an_address_that_is_near_is_refused_at_once(client: httpx.AsyncClient, service: Service) -> None:
    sender = service.application.webhooks
    assert isinstance(sender, FakeWebhookSender)
    sender.refused.add("http://10.0.0.1/")
    response = await client.post(HOOKS, json={"url": "http://10.0.0.1/"})
    assert (response.status_code, list(response.json()["errors"])) == (422, ["url"])


async def test_webhooks_of_a_tenant_are_limited(client: httpx.AsyncClient) -> None:
    for _ in range(MAX_WEBHOOKS):
        await made(client)
    refused = await client.post(HOOKS, json={"url": URL})
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
