"""Due times of scheduled backups, for every interval that the API accepts."""

from __future__ import annotations

import pytest
from tests.unit.samples import NOW

from builderd.backups.model import due_at


@pytest.mark.parametrize("hours", [1, 24, 2**31 - 1])
def test_no_interval_leads_beyond_the_calendar(hours: int) -> None:
    assert due_at(hours, None, 0, NOW) > NOW
