"""The clock."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The time in UTC, timezone-aware, with microseconds.

        It begins no later than the wall clock, and never goes back while the service runs.
        """

    def deletable(self) -> datetime:
        """Data that expired before this time may be deleted.

        The wall clock's time, at most ``now``, without its steps forward of more than an hour within the last day: an
        operator has a day to correct a wrong clock before it deletes data.
        """

    def passed(self) -> float:
        """Seconds of a count that is never set, and is paused with a machine that sleeps: for limits of a wait."""

    async def sleep(self, seconds: float) -> None:
        """Let this much time pass."""

    def fault(self) -> str:
        """Return how the machine's clock was set or rows may lie in the future, and what to do; "" for neither."""
