"""Metrics: resource usage and requests of builders, in buckets of five minutes.

Buckets add up: two samples of the same bucket are merged, and several buckets make a longer one. So the number of
rows is bounded by the retention time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from builderd.core.ids import BuilderId, SandboxId, TenantId
from builderd.previews.model import RESPONSE_BOUNDS, RESPONSE_TIMES, TIMED_CLASSES, PreviewActivity
from builderd.sandboxes.model import SandboxUsage

BUCKET = timedelta(minutes=5)
#: Retention of metrics.
SPAN = timedelta(hours=24)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage within some time; sums of several are exact. ``seconds`` is how long it was sampled.

    ``memory_byte_seconds`` divided by ``seconds`` is the average; ``answers_2xx`` and so on count HTTP responses,
    ``within_5_ms`` and so on the app's by the time until their head (``previews.RESPONSE_TIMES``), ``class_times``
    those of each of ``previews.TIMED_CLASSES``.
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
    within_5_ms: int = 0
    within_10_ms: int = 0
    within_25_ms: int = 0
    within_50_ms: int = 0
    within_100_ms: int = 0
    within_250_ms: int = 0
    within_500_ms: int = 0
    within_1000_ms: int = 0
    within_2500_ms: int = 0
    within_10000_ms: int = 0
    slower: int = 0
    class_times: tuple[int, ...] = ()

    @property
    def cpu(self) -> float | None:
        """Average vCPU in use; None without samples."""
        return self.cpu_seconds / self.seconds if self.seconds else None

    @property
    def memory_bytes(self) -> int | None:
        return int(self.memory_byte_seconds / self.seconds) if self.seconds else None


class Load(NamedTuple):
    """Averages of some time: vCPU in use, and bytes of memory."""

    cpu: float
    memory_bytes: float


def response_counts(usage: Usage | PreviewActivity, cls: str | None = None) -> Sequence[int]:
    """Return the number of the app's responses by ``RESPONSE_TIMES``: all of them, or those of a class of statuses."""
    whole = [int(getattr(usage, name)) for name in RESPONSE_TIMES]
    if cls is None:
        return whole
    number, known = len(RESPONSE_TIMES), usage.class_times
    classes = [known[start : start + number] for start in range(0, len(known), number)]
    if cls in TIMED_CLASSES:
        return classes[TIMED_CLASSES.index(cls)] if classes else [0] * number
    # The counters of a host are not read in one moment.
    return [max(count - sum(others), 0) for count, *others in zip(whole, *classes, strict=True)]


def response_seconds(usage: Usage, share: float, cls: str | None = None) -> float | None:
    """Return the time within which this share of the app's responses came, None without any.

    Interpolated within its class, as Prometheus does; at most the last bound, beyond which times are not known.
    """
    counts = response_counts(usage, cls)
    wanted, below = share * sum(counts), 0
    if not sum(counts):
        return None
    for count, low, high in zip(counts, (0, *RESPONSE_BOUNDS), RESPONSE_BOUNDS, strict=False):
        if count and below + count >= wanted:
            return (low + (high - low) * (wanted - below) / count) / 1000
        below += count
    return RESPONSE_BOUNDS[-1] / 1000


#: Fields that are merged by their maximum; all others are added.
MAXIMA = ("memory_most_bytes", "disk_most_bytes")
_NUMBERS = tuple(field.name for field in fields(Usage) if field.name != "class_times")


@dataclass(frozen=True, slots=True)
class UsageBucket:
    """Usage of one builder in one bucket; ``start`` is a multiple of ``BUCKET``."""

    builder_id: BuilderId
    start: datetime
    usage: Usage


@dataclass(frozen=True, slots=True)
class SampleTarget:
    """Sandbox to sample, with its builder and tenant."""

    tenant_id: TenantId
    tenant: str
    builder_id: BuilderId
    name: str
    host: str
    sandbox_id: SandboxId
    started_at: datetime
    #: A further process, which adds to what the app's own sandbox uses; empty for that one.
    process: str = ""


@dataclass(frozen=True, slots=True)
class UsageSample:
    """Latest sample of a builder: usage since its sandbox started, and ``since_previous`` sample."""

    watched: SampleTarget
    at: datetime
    used: SandboxUsage
    visited: PreviewActivity | None
    since_previous: Usage


#: Counters that the previews and ``Usage`` have in common.
VISITS = ("requests", "answers_2xx", "answers_3xx", "answers_4xx", "answers_5xx", *RESPONSE_TIMES)


def start_of(time: datetime, step: timedelta = BUCKET) -> datetime:
    """Return the start of the bucket that contains the time."""
    return _EPOCH + (time - _EPOCH) // step * step


def add(one: Usage, other: Usage) -> Usage:
    """Merge two usages."""
    return Usage(
        **{name: (max if name in MAXIMA else sum)((getattr(one, name), getattr(other, name))) for name in _NUMBERS},
        class_times=added_times(one.class_times, other.class_times),
    )


def added_times(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sum of two ``class_times``."""
    return tuple(map(sum, zip(one, other, strict=True))) if one and other else one or other


def together(one: SandboxUsage, other: SandboxUsage) -> SandboxUsage:
    """Return the usage of two sandboxes on one disk."""
    total = {each.name: getattr(one, each.name) + getattr(other, each.name) for each in fields(SandboxUsage)}
    return SandboxUsage(**{**total, "disk_bytes": max(one.disk_bytes, other.disk_bytes)})


def usage_between(
    used: SandboxUsage,
    before: SandboxUsage | None,
    visited: PreviewActivity | None,
    seen: PreviewActivity | None,
    seconds: float,
) -> Usage:
    """Return the usage between two samples. A counter that went down was reset: its value counts from 0."""
    since = before or SandboxUsage(0, 0, 0, 0, 0, 0)
    visits = {
        field: _more(getattr(visited, field), getattr(seen, field) if seen else 0)
        for field in VISITS
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
        class_times=_more_times(visited.class_times if visited else (), seen.class_times if seen else ()),
    )


def _more_times(now: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    more = tuple(map(_more, now, before or (0,) * len(now)))
    return more if any(more) else ()


def _more(now: int, before: int) -> int:
    return now - before if now >= before else now


def resample(
    steps: Iterable[UsageBucket], begin: datetime, step: timedelta, count: int
) -> Sequence[tuple[datetime, Usage]]:
    """Return ``count`` (start, usage) pairs from ``begin`` on, empty ones included."""
    sums = [Usage()] * count
    for one in steps:
        index = (one.start - begin) // step
        if 0 <= index < count:
            sums[index] = add(sums[index], one.usage)
    return [(begin + number * step, usage) for number, usage in enumerate(sums)]


def merged(steps: Iterable[UsageBucket]) -> list[UsageBucket]:
    """Merge buckets of the same builder and start; sorted by both."""
    found: dict[tuple[BuilderId, datetime], UsageBucket] = {}
    for one in steps:
        key = (one.builder_id, one.start)
        found[key] = replace(one, usage=add(found[key].usage, one.usage)) if key in found else one
    return [found[key] for key in sorted(found)]
