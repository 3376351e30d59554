"""Events of builders and tenants: stored, listed, streamed, and delivered to webhooks.

Messages follow Standard Webhooks (https://github.com/standard-webhooks/standard-webhooks): the headers, the signed
content, the form of secrets and of the payload.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from builderd.core.addresses import parse
from builderd.core.ids import BuilderId, TenantId, TokenId, WebhookId, new_id

#: Actor of changes that the service makes by itself.
SYSTEM = "system"

#: A type, all types below a word, or everything.
_PATTERN = re.compile(r"\*|[a-z][a-z_]*(?:\.[a-z_]+)*(?:\.\*)?")
MAX_PATTERN = 64
ALL = "*"


@dataclass(frozen=True, slots=True)
class Event:
    """An event. ``id`` counts up over the whole store (0 until stored); ``actor`` is ``token <name>`` or ``system``.

    Types: ``builder.created``, ``builder.status`` (details: from, to), ``builder.deleted``,
    ``version.created``, ``version.deployed`` and ``version.failed`` (details: version, of the last also code),
    ``review.passed``, ``review.failed`` and ``review.accepted`` (details: version, or the finding with its reason),
    ``stage.started`` and ``stage.finished`` (details: stage, seconds, ok), ``qa.changed`` (details: version,
    qa_passed), ``port.adopted`` (details: version, port), ``sandbox.started``,
    ``sandbox.ended`` (details: exit_code, cause), ``process.restarting`` and ``process.failed`` (details: process),
    ``domain.added``, ``domain.active``, ``domain.failed``,
    ``domain.renewed``, ``domain.expiring``, ``domain.lost``, ``domain.lapsed`` and ``domain.removed`` (details: host,
    name), ``preview_link.created`` and ``preview_link.revoked`` (details: link, port, expires_at),
    ``disk.released`` (details: disk, gb), ``storage.unavailable`` and ``storage.available``,
    ``member.lost``, ``member.returned`` and ``member.moved`` (details: member).
    ``builder_id`` is None for an event of the whole tenant.
    """

    tenant_id: TenantId
    builder_id: BuilderId | None
    time: datetime
    type: str
    actor: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0


def is_pattern(text: str) -> bool:
    """Return True for a pattern of event types: ``builder.status``, ``builder.*`` or ``*``."""
    return len(text) <= MAX_PATTERN and _PATTERN.fullmatch(text) is not None


def matches(patterns: Iterable[str], kind: str) -> bool:
    """Return True if one of the patterns matches this type. ``builder.*`` also matches ``builder.disk.grown``."""
    return any(pattern in (ALL, kind) or kind.startswith(prefix_of(pattern) or "\0") for pattern in patterns)


def prefix_of(pattern: str) -> str | None:
    """Return ``builder.`` for ``builder.*``; None for a pattern of one type or of all."""
    return pattern[:-1] if pattern.endswith(".*") else None


MAX_URL = 2_000
#: Limit per tenant.
MAX_WEBHOOKS = 10
SECRET_PREFIX = "whsec_"  # noqa: S105
#: Length of a plain secret in characters, and of a key behind the prefix in bytes.
MIN_SECRET, MAX_SECRET = 24, 255
MIN_KEY, MAX_KEY = 24, 64

#: Delay after each failed attempt; after the last one, some two days later, the delivery is given up.
DELAYS = tuple(
    timedelta(seconds=seconds) for seconds in (5, 30, 300, 1_800, 2 * 3_600, 5 * 3_600, 14 * 3_600, 24 * 3_600)
)
MAX_ATTEMPTS = len(DELAYS) + 1
#: Pause of a failing webhook's deliveries: after the first failure, and at most; doubled each time.
FIRST_HOLD, LAST_HOLD = timedelta(seconds=5), timedelta(minutes=5)
#: Characters that are stored of a response or an error.
MAX_NOTE = 500
#: Status with which an endpoint ends its webhook (RFC 9110, 15.5.11).
GONE = 410


class WebhookStatus(StrEnum):
    ACTIVE = "active"
    #: No deliveries any more; the reason says why.
    DISABLED = "disabled"


class DeliveryStatus(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Webhook:
    """Webhook. ``place`` is its cursor: the id of the last event that became a delivery. ``events`` are patterns.

    ``secret`` is sealed. ``failures`` counts the failed attempts since the last success; nothing is tried before
    ``held_until``. ``token_id`` is the API token that made it, with which it ends: at ``expires_at``, or when revoked.
    """

    id: WebhookId
    tenant_id: TenantId
    url: str
    events: tuple[str, ...]
    secret: bytes
    created_at: datetime
    created_by: str
    place: int
    status: WebhookStatus = WebhookStatus.ACTIVE
    status_reason: str = ""
    failures: int = 0
    held_until: datetime | None = None
    last_success_at: datetime | None = None
    token_id: TokenId | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """Attempt at a delivery. ``status`` of the response or None; ``note`` is its beginning, or the error."""

    at: datetime
    status: int | None
    seconds: float
    note: str

    @property
    def ok(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Delivery:
    """Delivery of one event to one webhook. ``id`` is equal in all attempts, so that receivers drop repetitions."""

    id: str
    webhook_id: WebhookId
    event_id: int
    event_type: str
    created_at: datetime
    due_at: datetime
    status: DeliveryStatus = DeliveryStatus.PENDING
    attempts: tuple[Attempt, ...] = field(default=())


def new_delivery(webhook: Webhook, event: Event, now: datetime) -> Delivery:
    return Delivery(f"msg_{new_id()}", webhook.id, event.id, event.type, created_at=now, due_at=now)


def attempted(webhook: Webhook, delivery: Delivery, attempt: Attempt) -> tuple[Webhook, Delivery]:
    """Return both after this attempt. A given-up delivery disables a webhook without any success since it was made."""
    attempts = (*delivery.attempts, attempt)
    tried = replace(delivery, attempts=attempts)
    if attempt.ok:
        succeeded = replace(webhook, failures=0, held_until=None, last_success_at=attempt.at)
        return succeeded, replace(tried, status=DeliveryStatus.DELIVERED)
    hold = min(FIRST_HOLD * 2 ** min(webhook.failures, 10), LAST_HOLD)
    failed = replace(webhook, failures=webhook.failures + 1, held_until=attempt.at + hold)
    if attempt.status == GONE:
        return disabled(failed, "it answered 410 Gone"), replace(tried, status=DeliveryStatus.GIVEN_UP)
    if len(attempts) <= len(DELAYS):
        return failed, replace(tried, due_at=attempt.at + DELAYS[len(attempts) - 1])
    given_up = replace(tried, status=DeliveryStatus.GIVEN_UP)
    if webhook.last_success_at is None or webhook.last_success_at < delivery.created_at:
        return disabled(failed, f"nothing got through in {len(attempts)} attempts: {attempt.note}"), given_up
    return failed, given_up


def disabled(webhook: Webhook, reason: str) -> Webhook:
    return replace(webhook, status=WebhookStatus.DISABLED, status_reason=reason, held_until=None)


# Messages


def payload(event: Event) -> bytes:
    """Return the body, equal in all attempts. ``data`` is the event as the API shows it."""
    return json.dumps(
        {
            "type": event.type,
            "timestamp": _exact(event.time),
            "data": {
                "id": event.id,
                "time": _exact(event.time),
                "type": event.type,
                "builder": event.builder_id,
                "actor": event.actor,
                "reason": event.reason,
                "details": dict(event.details),
            },
        },
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode(errors="replace")


def _exact(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def headers(message_id: str, now: datetime, body: bytes, secret: str) -> Mapping[str, str]:
    """Return the headers of one attempt. The signature covers the time, which prevents replays."""
    stamp = str(int(now.timestamp()))
    return {
        "Content-Type": "application/json",
        "User-Agent": "builderd-webhooks/1",
        "Webhook-Id": message_id,
        "Webhook-Timestamp": stamp,
        "Webhook-Signature": sign(message_id, stamp, body, secret),
    }


def sign(message_id: str, stamp: str, body: bytes, secret: str) -> str:
    """Return ``v1,`` and the HMAC-SHA256 of ``<id>.<seconds>.<body>`` in base64."""
    signed = f"{message_id}.{stamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key_of(secret), signed, hashlib.sha256)).decode()


def key_of(secret: str) -> bytes:
    """Return the key: base64 after ``whsec_``, or the secret itself."""
    if secret.startswith(SECRET_PREFIX):
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    return secret.encode()


def associated_data_of(webhook: Webhook | WebhookId) -> str:
    """Return the associated data of a webhook's secret: ``webhook/<id>``."""
    return f"webhook/{webhook.id if isinstance(webhook, Webhook) else webhook}"


# Validation


def secret_error(secret: str) -> str | None:
    """Return the reason to reject a secret, or None."""
    if not secret.startswith(SECRET_PREFIX):
        plain = secret.isascii() and secret.isprintable() and MIN_SECRET <= len(secret) <= MAX_SECRET
        return None if plain else f"must be {MIN_SECRET} to {MAX_SECRET} printable ASCII characters, or left out"
    try:
        key = key_of(secret)
    except (binascii.Error, ValueError):
        return f"must have base64 after {SECRET_PREFIX}"
    return None if MIN_KEY <= len(key) <= MAX_KEY else f"must have {MIN_KEY} to {MAX_KEY} bytes after {SECRET_PREFIX}"


def url_error(url: str) -> str | None:
    """Return the reason to reject a URL, or None. The host's address is checked at each delivery instead."""
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        return f"must be a URL of at most {MAX_URL} printable ASCII characters, without spaces"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "must be a URL"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return "must begin with https:// (or http://) and name a host"
    if parts.username is not None or parts.password is not None or parts.fragment or "\\" in url:
        return "must have no user, password or fragment"
    if "%" in parts.netloc or ("[" in parts.netloc and parse(parts.hostname) is None):
        return "must name a host"
    return None
