"""Leases: keep a builder awake during work that no request shows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NewType

from builderd.domain.ids import BuilderId

LeaseId = NewType("LeaseId", str)

MAX_SECONDS = 3600
MAX_REASON_BYTES = 1000
#: Limit per builder.
MAX_LEASES = 100


@dataclass(frozen=True, slots=True)
class Lease:
    """Lease: its builder is not frozen or stopped for idleness until ``expires_at``. ``created_by`` is an actor."""

    id: LeaseId
    builder_id: BuilderId
    reason: str
    created_by: str
    created_at: datetime
    expires_at: datetime
