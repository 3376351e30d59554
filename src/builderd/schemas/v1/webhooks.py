"""Webhooks: delivery of events to a URL."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from builderd.domain.events import (
    MAX_PATTERN,
    MAX_SECRET,
    MAX_URL,
    DeliveryStatus,
    WebhookStatus,
    is_pattern,
    secret_error,
    url_error,
)
from builderd.schemas.v1.logs import ExactTime
from builderd.schemas.v1.shape import Page, Shape, Success, Time, View, checked_by

MAX_PATTERNS = 50


def _pattern_error(text: str) -> str | None:
    return None if is_pattern(text) else "must be a type such as builder.status, or builder.*, or *"


Pattern = Annotated[
    str,
    checked_by(_pattern_error),
    Field(json_schema_extra={"maxLength": MAX_PATTERN, "pattern": r"^(\*|[a-z][a-z_]*(\.[a-z_]+)*(\.\*)?)$"}),
]


class NewWebhook(Shape):
    """URL of a new webhook and its event types."""

    url: Annotated[str, checked_by(url_error)] = Field(
        description="Must lead to a public address.",
        json_schema_extra={"format": "uri", "pattern": "^https?://", "maxLength": MAX_URL},
    )
    events: list[Pattern] = Field(
        default_factory=lambda: ["*"], min_length=1, max_length=MAX_PATTERNS, description="Types; `*` for all."
    )
    secret: Annotated[str, checked_by(secret_error)] | None = Field(
        default=None,
        description="`whsec_` and 24 to 64 bytes in base64, or 24 and more characters; one is made if left out.",
        json_schema_extra={"maxLength": MAX_SECRET},
    )


class Webhook(View):
    """Webhook. ``status_reason`` says why it is disabled; ``failures`` counts since the last success.

    ``expires_at``: when the token that made it expires, and the webhook is disabled.
    """

    id: str
    url: str
    events: list[str]
    status: WebhookStatus
    status_reason: str
    failures: int
    last_success_at: Time | None
    created_at: Time
    expires_at: Time | None


class WebhookWithSecret(Webhook):
    """New webhook; only this response contains its ``secret``."""

    secret: str


class WebhookAnswer(Success[Webhook]):
    """One webhook."""


class NewWebhookAnswer(Success[WebhookWithSecret]):
    """A new webhook, with its secret."""


class WebhookPage(Page[Webhook]):
    """All webhooks, the oldest first."""


class Attempt(View):
    """Attempt at a delivery. ``status`` of the response or null; ``note`` its beginning, or the error."""

    at: ExactTime
    status: int | None
    seconds: float
    note: str


class Delivery(View):
    """One event for one webhook. ``id`` is its ``webhook-id`` in all attempts."""

    id: str
    event: int
    type: str
    status: DeliveryStatus
    created_at: ExactTime
    next_attempt_at: ExactTime | None
    attempts: list[Attempt]


class DeliveryPage(Page[Delivery]):
    """Deliveries, the newest event first."""
