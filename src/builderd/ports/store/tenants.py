"""Tenants in the store, with their spending caps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from builderd.domain.ids import TenantId
from builderd.domain.tenants import Tenant


class Tenants(Protocol):
    def add(self, tenant: Tenant) -> None: ...
    def get(self, tenant: TenantId) -> Tenant | None: ...
    def by_name(self, name: str) -> Tenant | None: ...
    def all(self) -> Sequence[Tenant]:
        """Return all tenants, oldest first."""

    def are_several(self) -> bool:
        """Return True if there is more than one tenant."""

    def count_anew(self, tenant: TenantId) -> None:
        """Compare the number and disk of live builders that are kept with the tenant, and correct and log a mistake."""

    def cap(self, tenant: TenantId, amount: Decimal | None) -> None:
        """Set the spending cap of a month, and let the warning be sent again."""

    def warned(self, tenant: TenantId, at: datetime) -> None:
        """Record that the warning of the cap was sent."""

    def make_spending_due(self, tenant: TenantId, at: datetime) -> None:
        """Check its spending at this time or earlier."""

    def spending_due(self, now: datetime) -> Sequence[tuple[TenantId, datetime]]:
        """Return the tenants whose spending check is due, with the due time, earliest first."""

    def postpone_spending(self, tenant: TenantId, seen: datetime, at: datetime | None) -> bool:
        """Set the next check to ``at`` (None: after a change); return False if it is no longer due at ``seen``."""
