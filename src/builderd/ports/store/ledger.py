"""The ledger of billed time in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.prices import Segment, Sum


class Ledger(Protocol):
    def open(self, segment: Segment) -> None:
        """Open a segment; the builder must have none open."""

    def close(self, builder: BuilderId, at: datetime) -> None:
        """Close the open segment, if any, never before its start."""

    def builders_over(self, since: datetime, until: datetime) -> Sequence[BuilderId]:
        """Return all tenants' builders, deleted ones too, with a segment that overlaps this time."""

    def skip(self, builder: BuilderId, since: datetime, until: datetime) -> None:
        """Remove a time that did not pass from the segments over it, splitting them. Idempotent.

        The builder must be locked in this unit of work. The cost does not grow with the history.
        """

    def current(self, builder: BuilderId) -> Segment | None: ...
    def of_builder(self, builder: BuilderId) -> Sequence[Segment]: ...
    def of_builders(
        self, builders: Sequence[BuilderId], since: datetime | None = None, until: datetime | None = None
    ) -> Mapping[BuilderId, Sequence[Segment]]:
        """Return whole segments that overlap [since, until), by builder; builders without one are left out."""

    def totals(self, builders: Sequence[BuilderId], now: datetime) -> Mapping[BuilderId, Sum]:
        """Return the sums of all time up to now; builders without a segment are left out. O(months) for each."""

    def of_month(self, tenant: TenantId, now: datetime) -> Mapping[BuilderId, Sum]:
        """Return the sums of the current month up to now, for the tenant's builders billed in it."""

    def open_of(self, tenant: TenantId) -> Sequence[Segment]:
        """Return the open segments of the tenant's builders."""
