"""Calendar months in UTC, the periods of spending caps."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime


def month_of(at: datetime) -> datetime:
    """Return the start of the month that contains ``at``."""
    return at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def next_month(at: datetime) -> datetime:
    """Return the start of the month after ``at``."""
    first = month_of(at)
    return first.replace(year=first.year + 1, month=1) if first.month == 12 else first.replace(month=first.month + 1)


def months_between(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, datetime]]:
    """Split [start, end) at the starts of months into ``(month, from, to)``; the first part may be empty."""
    month = month_of(start)
    while True:
        following = next_month(month)
        yield month, start, min(end, following)
        if end <= following:
            return
        month = start = following
