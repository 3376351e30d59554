"""Gates: an event records each gate that a caller skipped."""

from __future__ import annotations

from datetime import datetime

from builderd.domain.builders import Builder
from builderd.domain.events import Event
from builderd.domain.versions import Version
from builderd.store import UnitOfWork


def note_skipped(uow: UnitOfWork, builder: Builder, version: Version, now: datetime) -> None:
    """Record an event for each gate that this new version skips."""
    skipped = {"review": version.settings.skip_review, "qa": version.settings.skip_qa}
    for gate in (name for name, is_skipped in skipped.items() if is_skipped):
        details = {"gate": gate, "version": version.number}
        reason = f"{gate} left out by {version.created_by}"
        uow.events.add(Event(builder.tenant_id, builder.id, now, "gate.skipped", version.created_by, reason, details))
