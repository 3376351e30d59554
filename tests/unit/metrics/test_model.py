"""Steps add up, and are bounded by time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from builderd.core.ids import BuilderId
from builderd.metrics.model import (
    Usage,
    UsageBucket,
    add,
    merged,
    resample,
    response_counts,
    response_seconds,
    start_of,
    usage_between,
)
from builderd.previews.model import RESPONSE_BOUNDS, RESPONSE_TIMES, PreviewActivity
from builderd.sandboxes.model import SandboxUsage

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
USED = SandboxUsage(10.0, 1_000, 500, 100, 200, 3)
SEEN = PreviewActivity(10, 0, 0, 0, 0, 0.0, answers_2xx=6, answers_3xx=1, answers_4xx=2, answers_5xx=1)


def test_a_step_begins_at_a_multiple_of_five_minutes() -> None:
    assert start_of(NOON + 7 * MINUTE) == NOON + 5 * MINUTE
    assert start_of(NOON) == NOON
    assert start_of(NOON + 59 * MINUTE, timedelta(hours=1)) == NOON


def test_usage_between_two_samples() -> None:
    used = SandboxUsage(12.5, 3_000, 600, 150, 1_200, 5)
    seen = replace(SEEN, requests=14, answers_2xx=9, answers_5xx=2)
    usage = usage_between(used, USED, seen, SEEN, 10)
    assert usage == Usage(10, 2.5, 30_000, 3_000, 600, 50, 1_000, 4, 3, 0, 0, 1)
    assert usage.cpu == 0.25
    assert usage.memory_bytes == 3_000


def test_decreased_counter_was_reset() -> None:
    usage = usage_between(replace(USED, network_in_bytes=7), USED, replace(SEEN, requests=3), SEEN, 10)
    assert (usage.network_in_bytes, usage.requests) == (7, 3)


def test_without_a_reading_before_everything_is_new_and_without_visitors_nothing() -> None:
    usage = usage_between(USED, None, None, None, 5)
    assert (usage.cpu_seconds, usage.network_in_bytes, usage.requests) == (10, 100, 0)


def test_usages_add_up_and_of_the_highest_the_highest_counts() -> None:
    one, other = Usage(10, 1, 1_000, 100, 50, requests=3), Usage(30, 2, 9_000, 300, 40, requests=1)
    both = add(one, other)
    assert (both.seconds, both.cpu_seconds, both.requests) == (40, 3, 4)
    assert (both.memory_bytes, both.memory_most_bytes, both.disk_most_bytes) == (250, 300, 50)


def test_nothing_watched_is_no_figure() -> None:
    assert Usage().cpu is None
    assert Usage().memory_bytes is None


def step(minutes: int, requests: int, builder: str = "b") -> UsageBucket:
    return UsageBucket(BuilderId(builder), NOON + minutes * MINUTE, Usage(seconds=60, requests=requests))


def test_steps_become_longer_ones_and_those_outside_are_left_out() -> None:
    steps = [step(-5, 99), step(0, 1), step(10, 2), step(15, 4), step(45, 99)]
    found = resample(steps, NOON, 15 * MINUTE, 3)
    assert [(start, usage.requests) for start, usage in found] == [
        (NOON, 3),
        (NOON + 15 * MINUTE, 4),
        (NOON + 30 * MINUTE, 0),
    ]


def test_readings_of_one_step_become_one() -> None:
    steps = merged([step(5, 1), step(0, 2), step(5, 4), step(0, 8, "a")])
    assert [(one.builder_id, one.start, one.usage.requests) for one in steps] == [
        ("a", NOON, 8),
        ("b", NOON, 2),
        ("b", NOON + 5 * MINUTE, 5),
    ]


def test_percentiles_are_interpolated_in_their_class() -> None:
    usage = Usage(within_5_ms=90, within_100_ms=10)
    assert response_seconds(usage, 0.45) == 0.0025
    assert response_seconds(usage, 0.9) == 0.005
    assert response_seconds(usage, 0.95) == 0.075
    assert response_seconds(Usage(slower=1), 0.5) == 10
    assert response_seconds(Usage(requests=5), 0.5) is None


def test_each_counter_of_times_is_a_field_of_both() -> None:
    seen = replace(SEEN, **dict.fromkeys(RESPONSE_TIMES, 2))  # type: ignore[arg-type]
    usage = usage_between(USED, None, seen, SEEN, 10)
    assert [getattr(usage, name) for name in RESPONSE_TIMES] == [2] * (len(RESPONSE_BOUNDS) + 1)


def test_times_of_each_class_of_statuses_are_kept_apart() -> None:
    count = len(RESPONSE_TIMES)
    failed = (0,) * count + (0,) * count + (0,) * (count - 1) + (4,)
    usage = Usage(within_5_ms=6, slower=4, class_times=failed)
    assert response_seconds(usage, 0.99, "2xx") == pytest.approx(0.00495)
    assert response_seconds(usage, 0.5, "5xx") == 10
    assert response_seconds(usage, 0.5, "4xx") is None
    assert response_seconds(Usage(within_5_ms=6), 0.5, "3xx") is None
    assert add(usage, Usage(within_5_ms=1)).class_times == failed
    assert add(usage, usage).class_times[-1] == 8


def test_times_of_classes_are_counted_between_samples() -> None:
    times = tuple(range(33))
    seen = replace(SEEN, class_times=times)
    assert usage_between(USED, None, seen, SEEN, 10).class_times == times
    assert usage_between(USED, None, seen, seen, 10).class_times == ()
    later = replace(SEEN, class_times=tuple(one + 2 for one in times))
    assert usage_between(USED, None, later, seen, 10).class_times == (2,) * 33


def test_counters_that_were_not_read_at_once_give_no_negative_count() -> None:
    assert response_counts(Usage(class_times=(1,) * 33), "2xx") == [0] * len(RESPONSE_TIMES)
