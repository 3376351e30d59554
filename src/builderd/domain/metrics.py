"""Metrics: what a builder used and how it was visited, in steps of five minutes.

A step adds up: two readings of the same step become one, and several steps a longer one. So their number is bounded
by the time that they are kept, whatever happens in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta

from builderd.domain.ids import BuilderId, SandboxId, TenantId
from builderd.domain.previews import PreviewActivity
from builderd.domain.sandboxes import SandboxUsage

BUCKET = timedelta(minutes=5)
#: How far back metrics go.
SPAN = timedelta(hours=24)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Usage:
    """What was used within some time, that adds up. ``seconds`` is how long it was watched.

    ``memory_byte_seconds`` divided by ``seconds`` is the average; ``answers_2xx`` and so on are what visitors got.
    """

    seconds: float = 0
    cpu_seconds: float = 0
    memory_byte_seconds: float = 0
    memory_most_bytes: int = 0
    disk_most_bytes: int = 0
    network_in_bytes: int = 0
    network_out_bytes: int = 0
    requests: int = 0
    answers_2xx: int = 0
    answers_3xx: int = 0
    answers_4xx: int = 0
    answers_5xx: int = 0

    @property
    def cpu(self) -> float | None:
        """vCPU in use, on average; None where nothing was watched."""
        return self.cpu_seconds / self.seconds if self.seconds else None

    @property
    def memory_bytes(self) -> int | None:
        return int(self.memory_byte_seconds / self.seconds) if self.seconds else None


#: The fields that do not add up: of several the greatest counts.
MAXIMA = ("memory_most_bytes", "disk_most_bytes")


@dataclass(frozen=True, slots=True)
class UsageBucket:
    """``start`` is a multiple of ``STEP``."""

    builder_id: BuilderId
    start: datetime
    usage: Usage


@dataclass(frozen=True, slots=True)
class SampleTarget:
    """A sandbox to be read, and whose it is."""

    tenant_id: TenantId
    tenant: str
    builder_id: BuilderId
    name: str
    host: str
    sandbox_id: SandboxId
    started_at: datetime


@dataclass(frozen=True, slots=True)
class UsageSample:
    """The latest of a builder: what its sandbox used since its start, and ``lately``, since the reading before."""

    watched: SampleTarget
    at: datetime
    used: SandboxUsage
    visited: PreviewActivity | None
    since_previous: Usage


def start_of(time: datetime, step: timedelta = BUCKET) -> datetime:
    """The beginning of the step in which the time lies."""
    return _EPOCH + (time - _EPOCH) // step * step


def add(one: Usage, other: Usage) -> Usage:
    """Both together."""
    return Usage(
        **{
            name: (max if name in MAXIMA else sum)((getattr(one, name), getattr(other, name)))
            for name in (field.name for field in fields(Usage))
        }
    )


def usage_between(
    used: SandboxUsage,
    before: SandboxUsage | None,
    visited: PreviewActivity | None,
    seen: PreviewActivity | None,
    seconds: float,
) -> Usage:
    """What came to pass between two readings. A counter that went down began anew."""
    since = before or SandboxUsage(0, 0, 0, 0, 0, 0)
    visits = {
        field: _more(getattr(visited, field), getattr(seen, field) if seen else 0)
        for field in ("requests", "answers_2xx", "answers_3xx", "answers_4xx", "answers_5xx")
        if visited is not None
    }
    return Usage(
        seconds=seconds,
        cpu_seconds=max(used.cpu_seconds - since.cpu_seconds, 0),
        memory_byte_seconds=used.memory_bytes * seconds,
        memory_most_bytes=used.memory_bytes,
        disk_most_bytes=used.disk_bytes,
        network_in_bytes=_more(used.network_in_bytes, since.network_in_bytes),
        network_out_bytes=_more(used.network_out_bytes, since.network_out_bytes),
        **visits,
    )


def _more(now: int, before: int) -> int:
    return now - before if now >= before else now


def resample(
    steps: Iterable[UsageBucket], begin: datetime, step: timedelta, count: int
) -> Sequence[tuple[datetime, Usage]]:
    """So many steps from the beginning on, those in which nothing was watched too."""
    sums = [Usage()] * count
    for one in steps:
        index = (one.start - begin) // step
        if 0 <= index < count:
            sums[index] = add(sums[index], one.usage)
    return [(begin + number * step, usage) for number, usage in enumerate(sums)]


def merged(steps: Iterable[UsageBucket]) -> list[UsageBucket]:
    """One for each builder and time, in that order."""
    found: dict[tuple[BuilderId, datetime], UsageBucket] = {}
    for one in steps:
        key = (one.builder_id, one.start)
        found[key] = replace(one, usage=add(found[key].usage, one.usage)) if key in found else one
    return [found[key] for key in sorted(found)]
