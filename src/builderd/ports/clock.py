"""The clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Skip:
    """A jump of the wall clock from ``since`` to ``until``: no time passed in between."""

    since: datetime
    until: datetime


class Clock(Protocol):
    def now(self) -> datetime:
        """The time in UTC, timezone-aware, with microseconds: measures elapsed time, but for ``skips``.

        It begins no later than the wall clock, and never goes back while the service runs.
        """

    def calendar(self) -> datetime:
        """The wall clock's time in UTC, at most ``now``; goes back when it is set back. For dates that users set."""

    def deletable(self) -> datetime:
        """Data that expired before this time may be deleted.

        ``calendar``, without the steps forward of more than an hour that it made within the last day: an operator has
        a day to correct a wrong clock before it deletes data.
        """

    def passed(self) -> float:
        """Seconds of a count that is never set, and is paused with a machine that sleeps: for limits of a wait."""

    async def sleep(self, seconds: float) -> None:
        """Let this much time pass."""

    async def poll(self, check: Callable[[], bool], pause: float, most: int) -> int:
        """Call a quick check after each ``pause`` seconds or so until it is True; return how often it was called.

        It is called ``most`` times at most, and for ``most`` pauses at most, however late each is: ``most`` is returned
        then. It costs less CPU time than ``sleep`` in a loop.
        """

    def skips(self) -> Sequence[Skip]:
        """Return skips that have not been settled, also from before this process."""

    def settle(self, skip: Skip) -> None:
        """Mark the skip as excluded from all bills and ends."""

    def fault(self) -> str:
        """Return how the machine's clock was set or rows may lie in the future, and what to do; "" for neither."""
