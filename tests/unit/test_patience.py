"""Limits against hanging follow from the CPU time that the machine needs, and stay on an ordinary one."""

from __future__ import annotations

import pytest
from tests.patience import slowness


@pytest.mark.parametrize(("taken", "factor"), [(0.0004, 1), (0.0016, 1), (0.003, 1), (0.016, 10), (0.048, 30)])
def test_limits_grow_with_the_cpu_time_of_a_far_slower_machine_alone(taken: float, factor: float) -> None:
    assert slowness(taken) == pytest.approx(factor)
