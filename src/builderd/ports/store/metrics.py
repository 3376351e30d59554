"""Metrics in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from builderd.domain.ids import BuilderId
from builderd.domain.metrics import Load, SampleTarget, UsageBucket


class Metrics(Protocol):
    def watched(self) -> Sequence[SampleTarget]:
        """Return all tenants' sandboxes that were started and have not ended, without trials."""

    def add(self, steps: Sequence[UsageBucket]) -> None:
        """Add these to the recorded buckets of the same builders and times."""

    def of_builder(self, builder: BuilderId, since: datetime) -> Sequence[UsageBucket]:
        """Return those that begin at or after this time, oldest first."""

    def loads(
        self, builders: Sequence[BuilderId], since: datetime, step: timedelta
    ) -> Mapping[BuilderId, Mapping[int, Load]]:
        """Return the averages of these builders in each step from ``since`` on that has samples, by its number."""

    def expire(self, before: datetime) -> int:
        """Delete those that began before this time; return the number."""
