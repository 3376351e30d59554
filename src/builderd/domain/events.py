"""Events: what happened to a builder, when, by whom and why. Kept, listed, and streamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from builderd.domain.ids import BuilderId, TenantId

#: The actor of what the service does by itself.
SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Event:
    """``id`` counts up over the whole store (0 until stored); ``actor`` is ``token <name>`` or ``system``.

    Types: ``builder.created``, ``builder.status`` (details: from, to), ``builder.deleted``,
    ``stage.started`` and ``stage.finished`` (details: stage, seconds, ok), ``sandbox.started``,
    ``sandbox.ended`` (details: exit_code, cause).
    """

    tenant_id: TenantId
    builder_id: BuilderId
    time: datetime
    type: str
    actor: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0
