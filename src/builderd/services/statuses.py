"""The one function that changes a builder's status; it writes the event with its reason."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from builderd.domain.builders import Builder, Status
from builderd.domain.events import Event
from builderd.store import UnitOfWork


def change(uow: UnitOfWork, builder: Builder, status: Status, reason: str, now: datetime) -> Builder:
    """Return the builder in its new status, not yet saved, and record the event.

    The caller saves it together with its other changes. The event's actor is the one who set the present desired state.
    An unchanged status records no event.
    """
    if status is not builder.status:
        uow.events.add(
            Event(
                tenant_id=builder.tenant_id,
                builder_id=builder.id,
                time=now,
                type="builder.status",
                actor=builder.cause.actor,
                reason=reason,
                details={"from": builder.status.value, "to": status.value},
            )
        )
    return replace(builder, status=status, status_reason=reason, updated_at=now)
