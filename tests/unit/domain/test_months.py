"""Calendar months in UTC, wherever a time is from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from builderd.domain.prices import month_of, months_between, next_month

halves = st.datetimes(datetime(2024, 1, 1), datetime(2027, 12, 31)).map(lambda time: time.replace(tzinfo=UTC))


def test_a_month_begins_at_midnight_utc_of_its_first_day() -> None:
    assert month_of(datetime(2028, 2, 29, 23, 59, tzinfo=UTC)) == datetime(2028, 2, 1, tzinfo=UTC)
    ahead = timezone(timedelta(hours=2))
    assert month_of(datetime(2026, 3, 1, 1, 0, tzinfo=ahead)) == datetime(2026, 2, 1, tzinfo=UTC)


def test_after_december_comes_january() -> None:
    assert next_month(datetime(2026, 12, 31, 23, 59, tzinfo=UTC)) == datetime(2027, 1, 1, tzinfo=UTC)
    assert next_month(datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2026, 2, 1, tzinfo=UTC)


@given(halves, halves)
def test_a_span_is_cut_at_months_without_gap_or_overlap(one: datetime, other: datetime) -> None:
    start, end = sorted((one, other))
    parts = list(months_between(start, end))
    assert parts[0][1] == start
    assert parts[-1][2] == end
    for month, since, until in parts:
        assert month <= since <= until <= next_month(month)
    assert [until for _, _, until in parts[:-1]] == [since for _, since, _ in parts[1:]]
    assert all(since == month for month, since, _ in parts[1:])
