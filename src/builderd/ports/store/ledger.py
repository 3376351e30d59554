"""The ledger of billed time in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.prices import Billing, Segment, Sum


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

    def month_of_builders(
        self, builders: Sequence[BuilderId], now: datetime, month: datetime | None = None
    ) -> Mapping[BuilderId, Sum]:
        """Return the sums of a month up to now, for those of these builders that are billed in it.

        Without ``month``, its start, it is the current one.
        """

    def rates_of_builders(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, Decimal]:
        """Return the hourly rates of the open segments of these builders."""

    # Of all builders of a tenant together, deleted ones too: summed by the database.

    def month_of_tenant(self, tenant: TenantId, now: datetime, month: datetime | None = None) -> Sum:
        """Return the sum of a month up to now: of the current one without ``month``, its start."""

    def total_of_tenant(
        self, tenant: TenantId, now: datetime, since: datetime | None = None, until: datetime | None = None
    ) -> Sum:
        """Return the sum inside [since, until), of all time without either, up to now."""

    def days_of_tenant(
        self, tenant: TenantId, now: datetime, since: datetime, until: datetime
    ) -> Mapping[datetime, Sum]:
        """Return the sums up to now of days in [since, until), both midnights in UTC, by their starts.

        A day without any is left out. The cost grows with the months, and with open segments.
        """

    def rates_of_tenant(self, tenant: TenantId) -> Mapping[Billing, tuple[int, Decimal]]:
        """Return the number of open segments and the sum of their hourly rates, by billing state."""

    def reaching(self, tenant: TenantId, now: datetime, money: Decimal) -> Sequence[BuilderId]:
        """Return a tenant's builders that cost so much this month if their open segments last to its end.

        Includes deleted ones, and perhaps some that stay just below: sums are made in floating point numbers.
        """

    def dearest(self, tenant: TenantId, now: datetime, month: datetime, limit: int) -> tuple[Sequence[BuilderId], int]:
        """Return the builders that cost most in a month up to now, and how many of them cost anything."""
