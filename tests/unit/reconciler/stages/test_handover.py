"""During a take-over, visitors get an answer within the time for which requests are paused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from builderd.adapters.previews.haproxy.pause import MAX_PAUSE
from builderd.domain.ids import BuilderId, DiskId, SandboxId
from builderd.domain.sandboxes import Sandbox
from builderd.reconciler.stages.handover import DRAIN_TIMEOUT, grace, time_limit

NOW = datetime(2026, 1, 31, tzinfo=UTC)
USUAL, LONGEST = 12.0, 60.0


def started(seconds: float | None) -> Sandbox:
    """One that listened after so many seconds, or never."""
    listening = None if seconds is None else NOW + timedelta(seconds=seconds)
    return Sandbox(SandboxId("1"), BuilderId("b"), 1, 1, 1, NOW, DiskId("d"), started_at=NOW, listening_at=listening)


@pytest.mark.parametrize("drained", [0.0, 2.0, DRAIN_TIMEOUT])
@pytest.mark.parametrize("old", [0.1, 3.0, 6.0, 10.0, 12.0])
def test_there_is_time_to_bring_the_old_version_back(drained: float, old: float) -> None:
    held = drained + grace(10, drained) + time_limit(started(0.3), started(old), USUAL, LONGEST) + old
    assert held <= MAX_PAUSE - 0.5


def test_requests_that_took_long_leave_the_old_version_less_time_to_end() -> None:
    assert [grace(10, seconds) for seconds in (0, 2, 4.5, 10)] == [5, 3, 1, 1]
    assert grace(0.5, 0) == 0.5


def test_slow_starter_gets_a_longer_time_limit() -> None:
    assert time_limit(started(7), started(0.1), USUAL, LONGEST) == LONGEST
    assert time_limit(started(4), started(12), USUAL, LONGEST) == LONGEST
    assert time_limit(started(5), started(0.1), USUAL, LONGEST) == USUAL


def test_time_limit_of_an_unknown_start_is_what_visitors_can_wait() -> None:
    assert time_limit(None, None, USUAL, LONGEST) == USUAL
    assert time_limit(started(None), started(0.1), USUAL, LONGEST) == USUAL
    assert time_limit(started(0.1), started(0.1), USUAL, 1) == 1
