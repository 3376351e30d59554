"""The caller's tenant: API tokens, credentials, webhooks, spending and its caps."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from builderd.credentials.model import MAX_BYTES, MAX_VARIABLES
from builderd.events.model import (
    MAX_PATTERN,
    MAX_SECRET,
    MAX_URL,
    DeliveryStatus,
    WebhookStatus,
    is_pattern,
    secret_error,
    url_error,
)
from builderd.schemas.monitoring import ExactTime
from builderd.schemas.shape import (
    FieldError,
    PageMeta,
    Shape,
    Success,
    Time,
    UtcTime,
    View,
    checked_by,
    refusal,
    with_field_errors,
)
from builderd.tokens.model import MAX_NAME, EndedKind, Scope
from builderd.versions.model import ENV_NAME, env_error

#: Checked by value, so that JSON's text is taken.
ScopeName = Annotated[Scope, Field(strict=False)]


class NewToken(Shape):
    """New API token, with no more scopes and no later expiry than the one that makes it."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME, pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$")]
    scopes: list[ScopeName] = Field(
        default_factory=lambda: [Scope.WRITE], min_length=1, max_length=len(Scope), description="Left out: write."
    )
    expires_at: UtcTime | None = Field(
        default=None, strict=False, description="RFC 3339. Left out: as that of the token which makes it."
    )


class Token(View):
    """API token without its secret. ``current``: the one that this call was made with.

    ``made_by`` is the token that made it and with which it ends; null: made on the service's machine.
    ``calls_in_24_h`` counts calls in this hour and the 23 before, without web pages.
    """

    id: str
    name: str
    scopes: list[Scope]
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None
    last_used_at: Time | None
    calls_in_24_h: int
    current: bool
    made_by: str | None


class TokenWithSecret(Token):
    """New API token; ``secret`` is shown only once."""

    secret: str


class Ended(View):
    """Thing that ended with the token that made it.

    ``name``: of the token or of the builder, a webhook's URL, empty for an upload. ``builder`` is its uuid.
    """

    kind: EndedKind
    id: str
    name: str
    builder: str | None


class RevokedToken(Token):
    """Revoked API token, and what ended with it in this call."""

    ended: list[Ended]


class NewTokenAnswer(Success[TokenWithSecret]):
    """Response with a new token."""


def _errors(values: Any) -> Iterator[FieldError]:
    if not isinstance(values, dict):
        return
    for name, content in values.items():
        why = env_error(name, content) if isinstance(content, str) else "must be text"
        if why is not None:
            yield (name,), why
    size = sum(len(name) + len(str(content).encode(errors="surrogatepass")) for name, content in values.items())
    if size > MAX_BYTES:
        yield (), f"must be at most {MAX_BYTES} bytes long in all"


Values = Annotated[
    dict[str, SecretStr],
    BeforeValidator(lambda value: with_field_errors(_errors(value), lambda: value)),
    Field(
        min_length=1,
        max_length=MAX_VARIABLES,
        json_schema_extra={"propertyNames": {"pattern": f"^{ENV_NAME.pattern}$"}},
    ),
]


class NewCredential(Shape):
    """Values of a credential, which replace all previous ones."""

    values: Values = Field(description="Environment variables of the builders that ask for this credential.")


class CredentialUse(View):
    """Builder that uses a credential. ``needs_restart``: it runs with old values.

    ``not_restarted`` is the reason of a failed restart, else absent.
    """

    uuid: str
    name: str
    needs_restart: bool
    not_restarted: str | None = Field(default=None, exclude_if=lambda value: value is None)


class Credential(View):
    """Credential without its values. ``variables`` are their names.

    ``last_used_by`` is the uuid of the builder that last started with it.
    """

    name: str
    variables: list[str]
    created_at: Time
    updated_at: Time
    last_used_at: Time | None
    last_used_by: str | None
    used_by: list[CredentialUse]


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


class NewWebhookAnswer(Success[WebhookWithSecret]):
    """A new webhook, with its secret."""


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


class Deployment(View):
    """Costs of one builder; amounts as in its ``cost``."""

    uuid: str
    name: str
    hourly_rate: float
    runtime_hours: float
    cost: float


class Spending(View):
    """Costs of all builders; ``deployments`` has one page of them, oldest first.

    ``total_cost`` is of all pages. It is rounded once, so it can differ by a cent from the sum of the rounded shares.

    ``vm_count`` is the number of builders on all pages.
    """

    currency: str
    total_cost: float
    vm_count: int
    deployments: list[Deployment]


class DaySpending(View):
    """Costs of all builders in one day (UTC). ``cost`` of the present day is what it has cost up to now."""

    day: date
    runtime_hours: float
    cost: float


class DaysSpending(View):
    """Costs of all builders by day, oldest first; days without costs are among them, days to come are not.

    ``total_cost`` is rounded once, so it can differ by cents from the sum of the rounded days.
    """

    currency: str
    total_cost: float
    days: list[DaySpending]


class SpendingAnswer(Success[Spending]):
    """Response with the spending, and the page of its ``deployments``."""

    meta: PageMeta


#: In the currency of the prices.
HIGHEST = 1_000_000_000


def _in_cents(amount: float) -> float:
    if round(amount, 2) != amount:
        raise refusal("must have at most 2 digits after the point")
    return amount


Amount = Annotated[float, Field(ge=0, le=HIGHEST, allow_inf_nan=False), AfterValidator(_in_cents)]


class NewSpendingCap(Shape):
    """New cap. ``monthly`` is the most that may be spent in a calendar month (UTC); null removes it."""

    monthly: Amount | None = Field(
        description="The most that may be spent in a calendar month (UTC); null lifts it.", examples=[20.0]
    )


class SpendingCap(View):
    """Spending cap: the lower of ``monthly`` (yours) and ``operator_limit`` ``applies``.

    ``spent`` is the amount in the present month, which ends at ``resets_at``.
    """

    currency: str
    monthly: float | None
    operator_limit: float | None
    applies: float | None
    spent: float
    resets_at: Time
