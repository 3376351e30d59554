"""Limit of a start: wall-clock time, and on a loaded machine until the app had as much CPU time."""

from __future__ import annotations

from builderd.domain.ids import SandboxId
from builderd.ports.engine import Sandboxes

#: Seconds between two looks at the CPU time; a quarter of a short timeout.
INTERVAL = 2.0
#: CPU seconds per second, from which on the app counts as busy: what waits for something else uses less.
BUSY = 0.02
#: Longest start on a loaded machine, in multiples of the timeout.
MOST = 5


class StartTime:
    """Decides when a start has taken too long.

    After ``timeout`` seconds an app fails, unless it is still busy and has had less than ``timeout`` seconds of CPU
    time: then the machine is slow, not the app. ``MOST`` times the timeout is the end in any case.
    """

    def __init__(self, engine: Sandboxes, sandbox: SandboxId, timeout: float) -> None:
        self._engine, self._sandbox, self._timeout = engine, sandbox, timeout
        self._interval = min(INTERVAL, timeout / 4)
        self._cpu = 0.0
        self._looked_at: float | None = None
        #: None until two looks were made: on a loaded machine the first one may come late.
        self._is_busy: bool | None = None

    async def is_over(self, seconds: float) -> bool:
        """Return True if an app that started ``seconds`` ago has had its time."""
        if seconds < self._timeout - self._interval:
            return False
        if seconds >= MOST * self._timeout:
            return True
        if self._looked_at is None or seconds - self._looked_at >= self._interval:
            await self._look(seconds)
        return seconds >= self._timeout and self._is_busy is False

    async def _look(self, seconds: float) -> None:
        usage = await self._engine.usage(self._sandbox)
        cpu = usage.cpu_seconds if usage is not None else self._cpu
        if self._looked_at is not None:
            is_working = cpu - self._cpu >= BUSY * (seconds - self._looked_at)
            self._is_busy = is_working and cpu < self._timeout
        self._cpu, self._looked_at = cpu, seconds
