"""Acceptance tests kill a real service where the reconciler still comes by: a step that it leaves out never kills."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from tests.acceptance import test_crash_matrix, test_idle_crashes, test_redeploy_crashes
from tests.unit.reconciler.test_crashes import OPERATIONS

#: Operation of the acceptance tests → the one on fakes, all of whose steps are killed there.
SAME = {
    "rollback": "redeploy",
    "change": "redeploy",
    "broken": "redeploy what starts on trial only",
    "token": "restart",
}
STEPS: Mapping[str, tuple[str, ...]] = {
    **test_crash_matrix.STEPS,
    **test_idle_crashes.STEPS,
    **test_redeploy_crashes.STEPS,
}


@pytest.mark.parametrize("operation", STEPS)
def test_each_step_of_acceptance_tests_is_one_on_fakes(operation: str) -> None:
    known = OPERATIONS[SAME.get(operation, operation)].steps
    assert set(STEPS[operation]) <= set(known), "no service comes by there: leave it out"
