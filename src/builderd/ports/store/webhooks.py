"""Webhooks and their deliveries in the store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.ids import TenantId, WebhookId
from builderd.domain.webhooks import Delivery, Webhook


class Webhooks(Protocol):
    def add(self, webhook: Webhook) -> None: ...
    def get(self, webhook: WebhookId, *, lock: bool = False) -> Webhook | None:
        """Return it. ``lock`` makes other writers of this row wait until the unit of work ends.

        Lock it before writing its deliveries, and save only a value that was read with the lock.
        """

    def list(self, tenant: TenantId) -> Sequence[Webhook]:
        """Return the tenant's webhooks, oldest first."""

    def all(self) -> Sequence[Webhook]:
        """Return the webhooks of all tenants."""

    def save(self, webhook: Webhook) -> None:
        """Save it, unless it was deleted."""

    def delete(self, webhook: WebhookId) -> None:
        """Delete it with its deliveries."""

    def any_active(self) -> bool:
        """Return True if any tenant has an active one."""

    def expired(self, now: datetime) -> Sequence[WebhookId]:
        """Return the active ones whose token has expired."""

    def with_undelivered_events(self) -> Sequence[WebhookId]:
        """Return the active ones whose tenant has events after their cursor (``place``)."""

    def due(self, now: datetime) -> Sequence[WebhookId]:
        """Return the active ones that are not paused and have due deliveries."""


class Deliveries(Protocol):
    def add(self, delivery: Delivery) -> None: ...
    def get(self, delivery: str) -> Delivery | None: ...
    def save(self, delivery: Delivery) -> None:
        """Save it, unless it was deleted."""

    def claim(self, webhook: WebhookId, now: datetime, until: datetime) -> Delivery | None:
        """Return the oldest due one and make it due at ``until``: of concurrent callers, one gets it."""

    def pending(self, webhook: WebhookId) -> int:
        """Return the number of pending ones."""

    def page(self, webhook: WebhookId, *, page: int, per_page: int) -> tuple[Sequence[Delivery], int]:
        """Return one page (from 1), newest first, and the total number."""

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` finished ones created before this time; return the number.

        Those of a disabled webhook count as finished.
        """
