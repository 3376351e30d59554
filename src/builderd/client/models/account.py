"""Things of a tenant: tokens, credentials, spending, webhooks, uploads; and the state of the service."""

from __future__ import annotations

from datetime import date, datetime

from builderd.client.models.base import Model


class Token(Model):
    """API token without its secret. ``scopes`` are ``read``, ``write``, ``skip-gates``, ``admin``.

    ``calls_in_24_h`` counts calls in this hour and the 23 before, without web pages. ``made_by`` is the token that made
    it and with which it ends.
    """

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    calls_in_24_h: int = 0
    current: bool = False
    made_by: str | None = None


class NewToken(Token):
    """New API token with its ``secret``, which is shown this once."""

    secret: str


class Ended(Model):
    """Thing that ended with the token that made it.

    ``kind`` is ``token``, ``ssh``, ``preview_link``, ``webhook`` or ``upload``; ``name`` that of the token or of the
    builder, a webhook's URL, empty for an upload; ``builder`` its uuid.
    """

    kind: str
    id: str
    name: str
    builder: str | None = None


class RevokedToken(Token):
    """Revoked API token, and what ``ended`` with it."""

    ended: list[Ended]


class CredentialUse(Model):
    """Builder that uses a credential. ``needs_restart``: it runs with old values.

    ``not_restarted`` is the reason of a failed restart, else absent.
    """

    uuid: str
    name: str
    needs_restart: bool
    not_restarted: str | None = None


class Credential(Model):
    """Credential without its values. ``variables`` are their names.

    ``last_used_by`` is the uuid of the builder that last started with it.
    """

    name: str
    variables: list[str]
    created_at: datetime
    updated_at: datetime
    last_used_at: datetime | None = None
    last_used_by: str | None = None
    used_by: list[CredentialUse]


class SpendingCap(Model):
    """Spending cap: the lower of ``monthly`` (yours) and ``operator_limit`` ``applies``.

    ``spent`` is the amount in the present month, which ends at ``resets_at``.
    """

    currency: str
    monthly: float | None = None
    operator_limit: float | None = None
    applies: float | None = None
    spent: float
    resets_at: datetime


class Deployment(Model):
    """Costs of one builder; amounts as in its ``cost``."""

    uuid: str
    name: str
    hourly_rate: float
    runtime_hours: float
    cost: float


class Spending(Model):
    """Costs of all builders; ``deployments`` has those of one page, or all of them, oldest first.

    ``total_cost`` is of all. It is rounded once, so it can differ by a cent from the sum of the rounded shares.

    ``vm_count`` is the number of all builders.
    """

    currency: str
    total_cost: float
    vm_count: int
    deployments: list[Deployment]


class DaySpending(Model):
    """Costs of all builders in one day (UTC). ``cost`` of the present day is what it has cost up to now."""

    day: date
    runtime_hours: float
    cost: float


class DaysSpending(Model):
    """Costs of all builders by day, oldest first; days without costs are among them, days to come are not.

    ``total_cost`` is rounded once, so it can differ by cents from the sum of the rounded days.
    """

    currency: str
    total_cost: float
    days: list[DaySpending]


class Webhook(Model):
    """Webhook. ``status_reason`` says why it is disabled; ``failures`` counts since the last success.

    ``expires_at``: when the token that made it expires, and the webhook is disabled.
    """

    id: str
    url: str
    events: list[str]
    status: str
    status_reason: str
    failures: int
    last_success_at: datetime | None = None
    created_at: datetime
    expires_at: datetime | None = None


class WebhookWithSecret(Webhook):
    """New webhook; only this response contains its ``secret``."""

    secret: str


class Attempt(Model):
    """Attempt at a delivery. ``status`` of the response or null; ``note`` its beginning, or the error."""

    at: datetime
    status: int | None = None
    seconds: float
    note: str


class Delivery(Model):
    """One event for one webhook. ``id`` is its ``webhook-id`` in all attempts."""

    id: str
    event: int
    type: str
    status: str
    created_at: datetime
    next_attempt_at: datetime | None = None
    attempts: list[Attempt]


class UploadPlace(Model):
    """Upload URL: it needs no token, since it contains a secret."""

    upload_id: str
    upload_url: str
    expires_at: datetime


class UploadState(Model):
    """State of an upload: ``received`` bytes; ``complete`` once it can be deployed."""

    upload_id: str
    received: int
    size: int | None = None
    complete: bool
    expires_at: datetime


class Part(Model):
    """Readiness of one part; ``message`` says what it waits for or what is wrong."""

    ready: bool
    message: str


class Health(Model):
    """Version of builderd that responds, and its role in its cluster: ``working`` or ``standby``.

    ``worker`` is the host of the service that works, as a standby knows it.
    """

    version: str
    role: str = "working"
    worker: str | None = None


class Readiness(Model):
    """Readiness of every part that builders need; of a standby, none is ready."""

    database: Part
    engine: Part
    previews: Part
    vault: Part | None = None
    public_url: Part | None = None
    clock: Part | None = None
    role: str = "working"
    worker: str | None = None
