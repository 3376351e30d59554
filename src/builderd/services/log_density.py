"""Number of lines of a log over time, and of those that are errors."""

from __future__ import annotations

from array import array
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from builderd.domain.sandboxes import LogStream
from builderd.services.logs import VersionedLine


@dataclass(frozen=True, slots=True)
class Bucket:
    """Lines from ``time`` on, and those of them that the app wrote to its standard error."""

    time: datetime
    lines: int
    errors: int


@dataclass(frozen=True, slots=True)
class Density:
    """``versions``: (version, time of its first line), in order; ``step`` is the length of a bucket."""

    lines: int
    step: timedelta
    buckets: Sequence[Bucket]
    versions: Sequence[tuple[int, datetime]]


async def density(lines: AsyncGenerator[VersionedLine], count: int) -> Density:
    """Count the lines, which come in order of time, in ``count`` buckets of equal length from the first to the last."""
    times, is_error, versions = array("d"), bytearray(), dict[int, datetime]()
    async with aclosing(lines):
        async for one in lines:
            times.append(one.line.time.timestamp())
            is_error.append(one.line.stream is LogStream.STDERR)
            versions.setdefault(one.version, one.line.time)
    if not times:
        return Density(0, timedelta(0), (), ())
    begin, width = min(times), max((max(times) - min(times)) / count, 1e-6)
    all_lines, errors = [0] * count, [0] * count
    for time, error in zip(times, is_error, strict=True):
        index = min(int((time - begin) / width), count - 1)
        all_lines[index] += 1
        errors[index] += error
    buckets = [
        Bucket(datetime.fromtimestamp(begin + index * width, UTC), all_lines[index], errors[index])
        for index in range(count)
    ]
    return Density(len(times), timedelta(seconds=width), buckets, list(versions.items()))
