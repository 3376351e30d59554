"""Limit of a start: wall-clock time, and on a loaded machine until the app had as much CPU time."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from builderd.domain.ids import SandboxId
from builderd.domain.sandboxes import SandboxEffort
from builderd.ports.clock import Clock
from builderd.ports.engine import Sandboxes

#: Seconds between two looks at the app's CPU time and threads; a quarter of a short timeout.
INTERVAL = 0.5
#: Seconds over which the app must have waited; a third of a short timeout. On a loaded machine an app that reads its
#: modules from a busy disk gets no CPU for some seconds, time and again.
WINDOW = 10.0
#: CPU seconds per second, from which on the app counts as busy: what waits for something else uses less.
BUSY = 0.02
#: Part of the looks, from which on an app that was found working counts as busy, however little CPU it got.
WORKING = 0.5
#: CPUs from which on nobody says that the machine gave the app too little.
ENOUGH = 0.5
#: Pages a second that an app at its own memory limit reads again, from which on it lacks memory: 100 kB, which even a
#: busy disk gives it.
REFAULTS = 25
#: Longest start on a loaded machine, in multiples of the timeout.
MOST = 5
#: Longest look at whether a worker lives, in multiples of its time.
MOST_LIFE = 20
#: Seconds between two questions of the caller that count. Where more pass, the service itself was not run, and neither
#: need the app have been: the machine was stalled or paused.
GAP = 2.0


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """Limit of something that an app has to do, in seconds.

    It is over after ``timeout`` unless the app was busy over the last ``window`` and has had less than ``timeout``
    seconds of CPU time: then the machine is slow, not the app. ``most`` is the end in any case. An app is busy that
    got ``busy`` CPUs, or that was found working in half of the looks. ``of_whole_start``: the CPU time counts from the
    start of the sandbox, else from the first look.
    """

    timeout: float
    window: float
    most: float
    busy: float = BUSY
    of_whole_start: bool = True

    @classmethod
    def of_start(cls, timeout: float, longest: float = 0.0) -> TimeLimit:
        """Return the limit of a start.

        ``longest`` is the version's own start timeout where ``timeout`` is a shorter one, as in a take-over: the window
        and the end are those of ``longest``, since a loaded machine stalls an app for as long whatever its timeout is.
        """
        longest = max(timeout, longest)
        return cls(timeout, min(WINDOW, longest / 3), MOST * longest)

    @classmethod
    def of_grace(cls, seconds: float, most: float) -> TimeLimit:
        """Return the limit of a short time that an app gets once more, and that goes on only for want of the machine.

        An app that answers and waits meanwhile, with whatever CPU time that takes, has had its time.
        """
        return cls(seconds, seconds, max(most, seconds), math.inf, of_whole_start=False)

    @classmethod
    def of_life(cls, seconds: float) -> TimeLimit:
        """Return the limit after which an app that still lives is up: a start that fails needs CPU time for that."""
        return cls(seconds, seconds, MOST_LIFE * seconds, math.inf)


@dataclass(frozen=True, slots=True)
class _Look:
    """``counted``: seconds until then, without gaps."""

    counted: float
    cpu: float
    is_working: bool
    refaults: int | None


class StartTime:
    """Decides when an app has taken too long. Begins ``before`` seconds ago, with the start of the sandbox or later.

    Ask ``is_over`` more often than every ``GAP`` seconds: longer gaps are not the app's, and do not count.
    """

    def __init__(
        self, engine: Sandboxes, clock: Clock, sandbox: SandboxId, limit: TimeLimit, before: float = 0.0
    ) -> None:
        self._engine, self._clock, self._sandbox, self._limit = engine, clock, sandbox, limit
        self._interval = min(INTERVAL, limit.timeout / 4)
        self._begun = self._asked = clock.passed()
        self._before = self._counted = before
        #: CPU time at the beginning, None before the first look.
        self._cpu_before: float | None = 0.0 if limit.of_whole_start else None
        #: The looks in the window, and the last one before it.
        self._looks: deque[_Look] = deque()

    @property
    def seconds(self) -> float:
        """Return the seconds since the beginning."""
        return self._before + self._clock.passed() - self._begun

    @property
    def left(self) -> float:
        """Return the seconds until it is over in any case."""
        return self._limit.most - self._counted

    @property
    def starved(self) -> float | None:
        """Return the CPU seconds of an app that worked until the end and had less than its timeout, else None.

        Then the machine is taken to be at fault.
        """
        if self.left > 0 or not self._looks or not self._was_working() or self.lacks_memory:
            return None
        if self._looks[-1].cpu - self._looks[0].cpu >= ENOUGH * self._watched > 0:
            return None
        return self._looks[-1].cpu - (self._cpu_before or 0.0)

    @property
    def lacks_memory(self) -> bool:
        """Return True if the app read its own pages again and again over the window, since its memory limit took them.

        It waits for the disk then, but what it lacks is memory.
        """
        counts = [look.refaults for look in self._looks]
        pairs = zip(counts, list(counts)[1:], strict=False)
        again = sum(after - before for before, after in pairs if before is not None and after is not None)
        return bool(again) and again >= REFAULTS * self._watched

    async def is_over(self) -> bool:
        """Return True if the app has had its time."""
        self._count()
        if self._counted < self._limit.timeout - 2 * self._limit.window:
            return False
        if not self._looks or self._counted - self._looks[-1].counted >= self._interval:
            await self._look()
        if self.left <= 0:
            return self._watched >= self._limit.window  # asked late, it looks for a window: ``starved`` follows from it
        return self._counted >= self._limit.timeout and self._is_done()

    def _count(self) -> None:
        now = self._clock.passed()
        self._counted += min(now - self._asked, GAP)
        self._asked = now

    async def _look(self) -> None:
        effort = await self._engine.effort(self._sandbox)
        self._count()
        known = self._looks[-1].cpu if self._looks else 0.0
        effort = effort or SandboxEffort(known)
        if self._cpu_before is None:
            self._cpu_before = effort.cpu_seconds
        self._looks.append(_Look(self._counted, effort.cpu_seconds, effort.is_working, effort.refaults))
        while len(self._looks) > 2 and self._counted - self._looks[1].counted >= self._limit.window:
            self._looks.popleft()

    def _is_done(self) -> bool:
        """Return True if the app had its CPU time, or waited for a whole window: the first look may come late."""
        begun, ended = self._looks[0], self._looks[-1]
        if len(self._looks) > 1 and ended.cpu - (self._cpu_before or 0.0) >= self._limit.timeout:
            return True
        return self._watched >= self._limit.window and not self._was_busy(ended.cpu - begun.cpu, self._watched)

    @property
    def _watched(self) -> float:
        """Return the seconds between the first look and the last."""
        return self._looks[-1].counted - self._looks[0].counted

    def _was_busy(self, cpu: float, seconds: float) -> bool:
        return cpu >= self._limit.busy * seconds or self._was_working()

    def _was_working(self) -> bool:
        return sum(look.is_working for look in self._looks) >= WORKING * len(self._looks)
