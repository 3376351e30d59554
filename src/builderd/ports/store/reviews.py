"""Review reports and acceptances in the store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.reviews import Acceptance, Report


class Reviews(Protocol):
    def get(self, tenant: TenantId, key: str) -> Report | None:
        """Return the report with this ``Report.key``."""

    def put(self, tenant: TenantId, report: Report) -> None:
        """Add or replace it by its key. A character that cannot be stored becomes U+FFFD."""

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` from before this time that no undeleted builder's version has; return the number."""


class Acceptances(Protocol):
    def save(self, acceptance: Acceptance) -> None:
        """Add it, or replace the finding's earlier one. The builder must be locked."""

    def of_builder(self, builder: BuilderId) -> Sequence[Acceptance]:
        """Return the builder's acceptances, oldest first, expired ones included."""

    def delete(self, builder: BuilderId) -> None:
        """Delete all acceptances of the builder."""
