"""Limit of a start: wall-clock time, twice as much beside a busy machine."""

from __future__ import annotations

from builderd.ports.clock import Clock
from builderd.ports.engine import Engine

#: Longest start, beside a busy machine, in multiples of the timeout.
MOST = 2


class StartTime:
    """Decides when an app has taken too long: after ``timeout`` seconds, of which ``before`` are over already."""

    def __init__(self, engine: Engine, clock: Clock, timeout: float, before: float = 0.0) -> None:
        self._engine, self._clock = engine, clock
        self._timeout, self._before = timeout, before
        self._begun = clock.passed()

    @property
    def seconds(self) -> float:
        """Return the seconds since the beginning."""
        return self._before + self._clock.passed() - self._begun

    @property
    def left(self) -> float:
        """Return the seconds until it is over in any case."""
        return MOST * self._timeout - self.seconds

    def is_over(self) -> bool:
        """Return True if the app has had its time."""
        return self.left <= 0 or (self.seconds >= self._timeout and not self._engine.is_busy())
