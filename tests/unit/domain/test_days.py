"""Days in UTC: how a span is split, and which spans may be asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from builderd.domain.errors import ValidationFailed
from builderd.domain.prices import DAY, MOST_DAYS, day_of, days_between, span_of_days

NOON = datetime(2026, 5, 2, 12, 30, tzinfo=UTC)
MIDNIGHT = datetime(2026, 5, 2, tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)


def test_day_is_that_of_utc() -> None:
    assert day_of(datetime(2026, 5, 3, 1, tzinfo=timezone(timedelta(hours=2)))) == MIDNIGHT


def test_span_is_split_at_midnights() -> None:
    end = MIDNIGHT + 2 * DAY
    parts = list(days_between(NOON, end))
    assert parts == [(MIDNIGHT, NOON, MIDNIGHT + DAY), (MIDNIGHT + DAY, MIDNIGHT + DAY, end)]
    assert list(days_between(NOON, NOON)) == list(days_between(end, NOON)) == []
    assert list(days_between(LAST - DAY / 2, LAST)) == [(day_of(LAST), LAST - DAY / 2, LAST)]


def test_days_to_come_are_left_out_of_a_span() -> None:
    assert span_of_days(MIDNIGHT - DAY, MIDNIGHT + 9 * DAY, NOON) == (MIDNIGHT - DAY, MIDNIGHT + DAY)
    assert span_of_days(MIDNIGHT - 2 * DAY, MIDNIGHT, NOON) == (MIDNIGHT - 2 * DAY, MIDNIGHT)
    assert span_of_days(MIDNIGHT + 3 * DAY, MIDNIGHT + 9 * DAY, NOON) == (MIDNIGHT + 3 * DAY, MIDNIGHT + 3 * DAY)


@pytest.mark.parametrize("until", [MIDNIGHT, MIDNIGHT - DAY, MIDNIGHT + (MOST_DAYS + 1) * DAY])
def test_empty_and_long_spans_are_refused(until: datetime) -> None:
    with pytest.raises(ValidationFailed):
        span_of_days(MIDNIGHT, until, NOON)
    assert span_of_days(MIDNIGHT, MIDNIGHT + MOST_DAYS * DAY, NOON) == (MIDNIGHT, MIDNIGHT + DAY)
