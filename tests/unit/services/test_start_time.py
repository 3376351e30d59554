"""Time limit of a start: by the clock, twice as long beside a busy machine."""

from __future__ import annotations

import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.engine import FakeEngine

from builderd.services.start_time import MOST, StartTime

TIMEOUT = 60.0


@pytest.mark.parametrize("before", [0.0, 20.0])
@pytest.mark.parametrize(("busy", "timeout"), [(False, TIMEOUT), (True, MOST * TIMEOUT)])
def test_time_is_over_after_the_timeout_and_later_beside_a_busy_machine(
    before: float, busy: bool, timeout: float
) -> None:
    clock, engine = FakeClock(), FakeEngine()
    engine.busy = busy
    start_time = StartTime(engine, clock, TIMEOUT, before)
    clock.move(timeout - before - 1)
    assert not start_time.is_over()
    clock.move(1)
    assert start_time.is_over()
    assert start_time.seconds == timeout


def test_start_goes_on_only_while_the_machine_is_busy() -> None:
    clock, engine = FakeClock(), FakeEngine()
    engine.busy = True
    start_time = StartTime(engine, clock, TIMEOUT)
    clock.move(TIMEOUT + 1)
    assert not start_time.is_over()
    engine.busy = False
    assert start_time.is_over()
