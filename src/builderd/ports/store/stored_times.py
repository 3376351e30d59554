"""Times in all tables, which a wrong clock may have moved."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol


class StoredTimes(Protocol):
    def move(self, since: datetime, until: datetime) -> None:
        """Leave a time that did not pass out of idle times, leases, grants, links and uploads, and out of claims."""

    def later_than(self, now: datetime) -> Mapping[str, int]:
        """Return how many times of the past lie after ``now``, by ``table.column``. Reads all rows."""

    def repair(self, now: datetime) -> Mapping[str, int]:
        """Mend what a clock that was ahead wrote; return how many times of the past it changed, by ``table.column``.

        Times of the past become ``now``, what is due later becomes due now, ends move with the beginning of their row,
        and what is billed after ``now`` is not billed. No service may run.
        """
