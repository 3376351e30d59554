"""Calendar months in UTC: what spending is capped by."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime


def month_of(at: datetime) -> datetime:
    """The beginning of the month that ``at`` lies in."""
    return at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def next_month(at: datetime) -> datetime:
    """The beginning of the month after the one that ``at`` lies in."""
    first = month_of(at)
    return first.replace(year=first.year + 1, month=1) if first.month == 12 else first.replace(month=first.month + 1)


def months_between(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, datetime]]:
    """[start, end) cut at the months' beginnings: ``(month, from, to)``, the first part also where it is empty."""
    month = month_of(start)
    while True:
        following = next_month(month)
        yield month, start, min(end, following)
        if end <= following:
            return
        month = start = following
