"""Events in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from builderd.domain.events import Event
from builderd.domain.ids import BuilderId, TenantId


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Filters of events. ``types`` are patterns of ``domain.events``, none for all; ``until`` is exclusive."""

    builder: BuilderId | None = None
    types: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None


class Events(Protocol):
    def add(self, event: Event) -> Event:
        """Add it; return it with its id."""

    def of_builder(self, builder: BuilderId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        """Return events with an id greater than ``after``, oldest first."""

    def get(self, event_id: int) -> Event | None: ...
    def page(self, tenant: TenantId, query: EventQuery, *, page: int, per_page: int) -> tuple[Sequence[Event], int]:
        """Return one page (from 1), newest first, and the total number."""

    def following(self, tenant: TenantId, query: EventQuery, *, after: int, limit: int) -> Sequence[Event]:
        """Return events with an id greater than ``after``, oldest first.

        A tenant's events become visible in the order of their ids: none is added below one that was read.
        """

    def last_id(self, tenant: TenantId) -> int:
        """Return the greatest id of the tenant's events, 0 without any."""

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` of the oldest that happened before this time; return the number."""
