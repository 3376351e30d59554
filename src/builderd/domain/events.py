"""Events of builders and tenants: stored, listed, streamed, and sent to webhooks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from builderd.domain.ids import BuilderId, TenantId

#: Actor of changes that the service makes by itself.
SYSTEM = "system"

#: A type, all types below a word, or everything.
_PATTERN = re.compile(r"\*|[a-z][a-z_]*(?:\.[a-z_]+)*(?:\.\*)?")
MAX_PATTERN = 64
ALL = "*"


@dataclass(frozen=True, slots=True)
class Event:
    """An event. ``id`` counts up over the whole store (0 until stored); ``actor`` is ``token <name>`` or ``system``.

    Types: ``builder.created``, ``builder.status`` (details: from, to), ``builder.deleted``,
    ``version.created``, ``version.deployed`` and ``version.failed`` (details: version, of the last also code),
    ``review.passed``, ``review.failed`` and ``review.accepted`` (details: version, or the finding with its reason),
    ``stage.started`` and ``stage.finished`` (details: stage, seconds, ok), ``qa.changed`` (details: version,
    qa_passed), ``sandbox.started``,
    ``sandbox.ended`` (details: exit_code, cause), ``domain.added``, ``domain.active``, ``domain.failed``,
    ``domain.renewed``, ``domain.expiring``, ``domain.lost``, ``domain.lapsed`` and ``domain.removed`` (details: host,
    name), ``preview_link.created`` and ``preview_link.revoked`` (details: link, port, expires_at),
    ``disk.released`` (details: disk, gb), ``storage.unavailable`` and ``storage.available``,
    ``member.lost``, ``member.returned`` and ``member.moved`` (details: member).
    ``builder_id`` is None for an event of the whole tenant.
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
    """Return True for a pattern of event types: ``builder.status``, ``builder.*`` or ``*``."""
    return len(text) <= MAX_PATTERN and _PATTERN.fullmatch(text) is not None


def matches(patterns: Iterable[str], kind: str) -> bool:
    """Return True if one of the patterns matches this type. ``builder.*`` also matches ``builder.disk.grown``."""
    return any(pattern in (ALL, kind) or kind.startswith(prefix_of(pattern) or "\0") for pattern in patterns)


def prefix_of(pattern: str) -> str | None:
    """Return ``builder.`` for ``builder.*``; None for a pattern of one type or of all."""
    return pattern[:-1] if pattern.endswith(".*") else None
