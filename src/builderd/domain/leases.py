"""Leases: somebody says that a builder is busy, for work that no request shows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NewType

from builderd.domain.ids import BuilderId

LeaseId = NewType("LeaseId", str)

MAX_SECONDS = 3600
MAX_REASON_BYTES = 1000
#: So many at once for one builder.
MAX_LEASES = 100


@dataclass(frozen=True, slots=True)
class Lease:
    """Until ``expires_at`` the builder is neither frozen nor stopped for idleness. ``created_by`` as events name it."""

    id: LeaseId
    builder_id: BuilderId
    reason: str
    created_by: str
    created_at: datetime
    expires_at: datetime
