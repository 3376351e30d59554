"""Limit of a start: wall-clock time, and on a loaded machine until the app had as much CPU time."""

from __future__ import annotations

from collections import deque

from builderd.domain.ids import SandboxId
from builderd.ports.engine import Sandboxes

#: Seconds between two looks at the CPU time; a quarter of a short timeout.
INTERVAL = 2.0
#: Seconds over which the app must have waited; a third of a short timeout. On a loaded machine an app that reads its
#: modules from a busy disk gets no CPU for some seconds, time and again.
WINDOW = 10.0
#: CPU seconds per second, from which on the app counts as busy: what waits for something else uses less.
BUSY = 0.02
#: Longest start on a loaded machine, in multiples of the timeout.
MOST = 5


class StartTime:
    """Decides when a start has taken too long.

    After ``timeout`` seconds an app fails, unless it was busy in the last ``WINDOW`` and has had less than ``timeout``
    seconds of CPU time: then the machine is slow, not the app. ``MOST`` times the timeout is the end in any case.

    ``longest`` is the version's own start timeout where ``timeout`` is a shorter one, as in a take-over: the window and
    the end are those of ``longest``, since a loaded machine stalls an app for as long whatever its timeout is.
    """

    def __init__(self, engine: Sandboxes, sandbox: SandboxId, timeout: float, longest: float = 0.0) -> None:
        self._engine, self._sandbox, self._timeout = engine, sandbox, timeout
        self._longest = max(timeout, longest)
        self._interval, self._window = min(INTERVAL, timeout / 4), min(WINDOW, self._longest / 3)
        #: (seconds, CPU seconds) of each look in the window, and of the last one before it.
        self._looks: deque[tuple[float, float]] = deque()

    @property
    def most(self) -> float:
        """Return the seconds after which a start is over in any case."""
        return MOST * self._longest

    async def is_over(self, seconds: float) -> bool:
        """Return True if an app that started ``seconds`` ago has had its time."""
        if seconds < self._timeout - 2 * self._window:
            return False
        if seconds >= self.most:
            return True
        if not self._looks or seconds - self._looks[-1][0] >= self._interval:
            await self._look(seconds)
        return seconds >= self._timeout and self._is_done()

    async def _look(self, seconds: float) -> None:
        usage = await self._engine.usage(self._sandbox)
        known = self._looks[-1][1] if self._looks else 0.0
        self._looks.append((seconds, usage.cpu_seconds if usage is not None else known))
        while len(self._looks) > 2 and seconds - self._looks[1][0] >= self._window:
            self._looks.popleft()

    def _is_done(self) -> bool:
        """Return True if the app had its CPU time, or waited for a whole window: the first look may come late."""
        (begun, before), (ended, cpu) = self._looks[0], self._looks[-1]
        if len(self._looks) > 1 and cpu >= self._timeout:
            return True
        return ended - begun >= self._window and cpu - before < BUSY * (ended - begun)
