"""Patterns name types of events."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from builderd.core.ids import BuilderId, TenantId, WebhookId
from builderd.events.model import (
    DELAYS,
    LAST_HOLD,
    MAX_ATTEMPTS,
    Attempt,
    Delivery,
    DeliveryStatus,
    Event,
    Webhook,
    WebhookStatus,
    attempted,
    headers,
    is_pattern,
    matches,
    payload,
    secret_error,
    sign,
    url_error,
)


@pytest.mark.parametrize("text", ["*", "builder.status", "builder.*", "backup.restore.done", "stage.started"])
def test_a_pattern_is_a_type_a_word_with_a_star_or_a_star(text: str) -> None:
    assert is_pattern(text)


@pytest.mark.parametrize(
    "text", ["", ".", "builder.", "*.status", "Builder.status", "a b", "b.*.c", "**", "x" * 65, "b\n"]
)
def test_anything_else_is_none(text: str) -> None:
    assert not is_pattern(text)


def test_a_pattern_names_what_lies_below_its_word_and_nothing_beside_it() -> None:
    assert matches(["builder.*"], "builder.status")
    assert matches(["builder.*"], "builder.disk.grown")
    assert not matches(["builder.*"], "builders.status")
    assert not matches(["builder.*"], "builder")
    assert matches(["stage.started", "builder.status"], "builder.status")
    assert not matches(["builder.status"], "builder.status.x")
    assert matches(["*"], "anything.at_all")
    assert not matches([], "builder.status")


NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
HOOK = Webhook(WebhookId("hook"), TenantId("t"), "https://example.com/", ("*",), b"sealed", NOW, "token ci", place=1)
DELIVERY = Delivery("msg_1", HOOK.id, 7, "builder.status", created_at=NOW, due_at=NOW)


def attempt(status: int | None, at: datetime = NOW) -> Attempt:
    return Attempt(at, status, 0.1, "no answer" if status is None else "")


def test_the_signature_is_that_of_the_specification() -> None:
    # The example of the specification's reference libraries.
    body = b'{"test": 2432232314}'
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    signature = sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body, secret)
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_time_and_the_id_are_signed_and_sent() -> None:
    sent = headers("msg_1", NOW, b"{}", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert (sent["Webhook-Id"], sent["Webhook-Timestamp"]) == ("msg_1", "1769860800")
    later = headers("msg_1", NOW + timedelta(seconds=1), b"{}", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    assert later["Webhook-Signature"] != sent["Webhook-Signature"]


def test_the_payload_is_the_event() -> None:
    event = Event(TenantId("t"), BuilderId("b"), NOW, "builder.status", "system", "ü\ud800", {"to": "running"}, id=7)
    told = json.loads(payload(event))
    assert (told["type"], told["timestamp"]) == ("builder.status", "2026-01-31T12:00:00.000000Z")
    assert told["data"]["id"] == 7
    assert told["data"]["builder"] == "b"
    assert told["data"]["details"] == {"to": "running"}


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_is_delivered_and_forgives_what_failed_before(status: int) -> None:
    hook = replace(HOOK, failures=3, held_until=NOW)
    after, delivery = attempted(hook, DELIVERY, attempt(status))
    assert (after.failures, after.held_until, after.last_success_at) == (0, None, NOW)
    assert delivery.status is DeliveryStatus.DELIVERED


@pytest.mark.parametrize("status", [None, 100, 301, 302, 307, 400, 401, 404, 429, 500, 503])
def test_anything_else_is_tried_again_later(status: int | None) -> None:
    after, delivery = attempted(HOOK, DELIVERY, attempt(status))
    assert (delivery.status, delivery.due_at) == (DeliveryStatus.PENDING, NOW + DELAYS[0])
    assert after.held_until == NOW + timedelta(seconds=5)


def test_delays_grow_and_the_last_attempt_disables_a_webhook_without_deliveries() -> None:
    assert list(DELAYS) == sorted(DELAYS)
    hook, delivery, at = HOOK, DELIVERY, NOW
    for number in range(MAX_ATTEMPTS):
        assert (hook.status, delivery.status) == (WebhookStatus.ACTIVE, DeliveryStatus.PENDING), number
        hook, delivery = attempted(hook, delivery, attempt(500, at))
        assert hook.held_until is None or hook.held_until - at <= LAST_HOLD
        at = delivery.due_at
    assert delivery.status is DeliveryStatus.GIVEN_UP
    assert hook.status is WebhookStatus.DISABLED
    assert f"{MAX_ATTEMPTS} attempts" in hook.status_reason
    assert len(delivery.attempts) == MAX_ATTEMPTS


def test_webhook_with_a_delivery_in_between_stays_enabled() -> None:
    delivery = replace(DELIVERY, attempts=(attempt(500),) * (MAX_ATTEMPTS - 1))
    hook, given_up = attempted(replace(HOOK, last_success_at=NOW + timedelta(hours=1)), delivery, attempt(500))
    assert (hook.status, given_up.status) == (WebhookStatus.ACTIVE, DeliveryStatus.GIVEN_UP)


def test_webhook_answering_410_is_disabled() -> None:
    hook, delivery = attempted(HOOK, DELIVERY, attempt(410))
    assert (hook.status, delivery.status) == (WebhookStatus.DISABLED, DeliveryStatus.GIVEN_UP)
    assert "410" in hook.status_reason


@pytest.mark.parametrize(
    "secret", ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "x" * 24, "a long one, with spaces in it"]
)
def test_secrets_are_taken(secret: str) -> None:
    assert secret_error(secret) is None
    assert sign("msg_1", "1", b"", secret).startswith("v1,")


@pytest.mark.parametrize(
    "secret",
    ["", "short", "x" * 256, "ü" * 24, "whsec_", "whsec_!!!!", "whsec_" + "A" * 8, "whsec_" + "A" * 200, "a\n" * 20],
)
def test_invalid_webhook_secret_is_rejected(secret: str) -> None:
    assert secret_error(secret) is not None


@pytest.mark.parametrize("url", ["https://example.com", "http://example.com:8080/a?b=c", "https://[2606:4700::1]/x"])
def test_urls_are_taken(url: str) -> None:
    assert url_error(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://example.com",
        "file:///etc/passwd",
        "gopher://example.com/",
        "https://",
        "https:///path",
        "https://user:secret@example.com/",
        "https://user@example.com/",
        "https://example.com/#part",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://example.com:x/",
        "https://exa mple.com/",
        "https://example.com/\r\nX-Injected: 1",
        "https://ex\u00e4mple.com/",
        "https://example.com\\@127.0.0.1/",
        "https://[::1/",
        "https://[v1.x]/",
        "https://[fe80::1%25eth0]/",
        "https://127.0.0.1%2f.example.com/",
        "https://example.com/" + "a" * 2_000,
    ],
)
def test_invalid_webhook_url_is_rejected(url: str) -> None:
    assert url_error(url) is not None
