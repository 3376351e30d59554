"""Events: what happened to a builder, when, by whom and why. Kept, listed, streamed, and sent to webhooks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from builderd.domain.ids import BuilderId, TenantId

#: The actor of what the service does by itself.
SYSTEM = "system"

#: A type, all types below a word, or everything.
_PATTERN = re.compile(r"\*|[a-z][a-z_]*(?:\.[a-z_]+)*(?:\.\*)?")
MAX_PATTERN = 64
ALL = "*"


@dataclass(frozen=True, slots=True)
class Event:
    """``id`` counts up over the whole store (0 until stored); ``actor`` is ``token <name>`` or ``system``.

    Types: ``builder.created``, ``builder.status`` (details: from, to), ``builder.deleted``,
    ``version.created``, ``version.deployed`` and ``version.failed`` (details: version, of the last also code),
    ``review.passed``, ``review.failed`` and ``review.accepted`` (details: version, or the finding with its reason),
    ``stage.started`` and ``stage.finished`` (details: stage, seconds, ok), ``sandbox.started``,
    ``sandbox.ended`` (details: exit_code, cause), ``storage.unavailable`` and ``storage.available``.
    ``builder_id`` is None for what concerns the tenant as a whole.
    """

    tenant_id: TenantId
    builder_id: BuilderId | None
    time: datetime
    type: str
    actor: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0


def is_pattern(text: str) -> bool:
    """Whether the text names types of events: ``builder.status``, ``builder.*`` or ``*``."""
    return len(text) <= MAX_PATTERN and _PATTERN.fullmatch(text) is not None


def matches(patterns: Iterable[str], kind: str) -> bool:
    """Whether one of the patterns names this type. ``builder.*`` also names ``builder.disk.grown``."""
    return any(pattern in (ALL, kind) or kind.startswith(prefix_of(pattern) or "\0") for pattern in patterns)


def prefix_of(pattern: str) -> str | None:
    """``builder.`` for ``builder.*``; None for a pattern that names one type, or all."""
    return pattern[:-1] if pattern.endswith(".*") else None
