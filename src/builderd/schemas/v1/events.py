"""Events of builders and tenants."""

from __future__ import annotations

from typing import Any

from builderd.schemas.v1.envelope import Page
from builderd.schemas.v1.logs import ExactTime
from builderd.schemas.v1.shape import View


class Event(View):
    """Event. ``id`` grows with time within a tenant. ``builder`` is null for the tenant's own.

    ``actor`` is ``token <name>`` or ``system``; ``reason`` is for people, ``details`` for machines.
    """

    id: int
    time: ExactTime
    type: str
    builder: str | None
    actor: str
    reason: str
    details: dict[str, Any]


class EventPage(Page[Event]):
    """Events, the newest first."""
