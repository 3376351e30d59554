"""Calendar days in UTC, of which spending is shown."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from builderd.domain.errors import ValidationFailed

DAY = timedelta(days=1)
#: Days that one call may ask for: a leap year.
MOST_DAYS = 366


def day_of(at: datetime) -> datetime:
    """Return the start of the day that contains ``at``."""
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def days_between(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, datetime]]:
    """Split [start, end) at midnights into ``(day, from, to)``; none is empty."""
    while start < end:
        day = day_of(start)
        # The last day of the year 9999 has no next one.
        until = end if end - day <= DAY else day + DAY
        yield day, start, until
        start = until


def span_of_days(since: datetime, until: datetime, now: datetime) -> tuple[datetime, datetime]:
    """Return the days from ``since`` up to before ``until`` that have begun. Raises ``ValidationFailed``."""
    if since >= until:
        raise ValidationFailed({"to": ["must be later than from"]})
    if until - since > MOST_DAYS * DAY:
        raise ValidationFailed({"to": [f"must be at most {MOST_DAYS} days after from"]})
    return since, max(since, min(until, day_of(now) + DAY))
