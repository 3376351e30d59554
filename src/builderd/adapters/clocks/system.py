"""The machine's clock, without its steps: time that was paid is never shown twice, and none is left out.

What is shown runs with ``CLOCK_BOOTTIME``, which no one can set and which counts on during a suspend. Where the
machine's own time (the wall) is set back, this goes on as before and is ahead of it from then on, until the wall is
set forward again or the machine restarts. Where the wall is set forward, this follows at once, and tells of it as
a ``Skip``: no time has passed in it. What is needed for that is kept in a file, so that also what was set while
no service ran is noticed by the next one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple

from builderd.ports.clock import Skip

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: The two clocks are read one after the other: what differs by less was not set, in nanoseconds.
GRAIN = 20_000_000
#: So many times they are read; the quickest time counts.
READINGS = 3
#: How often the present time is kept, in seconds: after a restart of the machine it is never earlier.
KEEP_INTERVAL = 10.0


class Reading(NamedTuple):
    """``boot`` names the boot of the machine; ``since_boot`` and ``wall`` in nanoseconds, the latter since 1970."""

    boot: str
    since_boot: int
    wall: int


@cache
def boot_id() -> str:
    """Names this boot of the machine: no process lives through two."""
    return BOOT_ID.read_text().strip()


def read_machine() -> Reading:
    """Both clocks now: on a busy machine one may stand still between two readings, which must not look like a step."""
    return min((_read_once() for _ in range(READINGS)), key=lambda read: read[0])[1]


def _read_once() -> tuple[int, Reading]:
    """With how long it took, in nanoseconds."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    wall = time.time_ns()
    took = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - before
    return took, Reading(boot_id(), before + took // 2, wall)


@dataclass(slots=True)
class _State:
    """In nanoseconds since 1970: ``wall`` and ``shown`` at the moment of the boot, as if each had run since.

    ``last``: a time that was shown. ``ahead_before``: by how much it was ahead of the wall in the boot before.
    """

    boot: str
    wall: int
    shown: int
    last: int
    ahead_before: int
    skips: list[tuple[int, int]]


class SystemClock:
    """``memory`` is the file; without one, this is good for as long as the process lives."""

    def __init__(self, memory: Path | None = None, read: Callable[[], Reading] = read_machine) -> None:
        self._memory = memory
        self._read = read
        self._lock = threading.Lock()
        #: Whether the file could not be written the last time.
        self._fails = False
        #: By how much this was ahead of the wall until that was set the last time, in nanoseconds.
        self._ahead_before_set = 0
        first = read()
        self._state = self._begin(first)
        self.now()
        self.keep()

    def now(self) -> datetime:
        return _time(self._now())

    def passed(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def skips(self) -> Sequence[Skip]:
        with self._lock:
            return [Skip(_time(since), _time(until)) for since, until in self._state.skips]

    def settle(self, skip: Skip) -> None:
        with self._lock:
            self._state.skips = [one for one in self._state.skips if _time(one[0]) != skip.since]
        self.keep()

    def seconds(self) -> float:
        """The same as ``now``, in seconds since 1970."""
        return self._now() / 1e9

    def at(self, wall: float) -> float:
        """What this showed when the wall, and so a file's time, was so many seconds since 1970; never later than now.

        What the wall has not reached yet was written before it was set back. Where it passed a time twice, the file is
        taken to be of the second.
        """
        now = self._now()
        with self._lock:
            state, then = self._state, int(wall * 1e9)
            if then > now - state.shown + state.wall + GRAIN:
                ahead = self._ahead_before_set
            elif then >= state.wall:
                ahead = state.shown - state.wall
            else:
                ahead = state.ahead_before
        return min(wall + ahead / 1e9, now / 1e9)

    def keep(self) -> None:
        """Write down what the next service needs. Where that fails, as on a full disk, a later call makes up for it."""
        if self._memory is None:
            return
        try:
            self._write(self._memory)
        except OSError:
            if not self._fails:
                log.warning("the time cannot be kept in %s; it is tried again", self._memory, exc_info=True)
            self._fails = True
        else:
            self._fails = False

    def _write(self, memory: Path) -> None:
        with self._lock:
            text = json.dumps(asdict(self._state))
            unfinished = memory.with_suffix(".new")
            unfinished.write_text(text)
            unfinished.rename(memory)

    async def keeping(self) -> None:
        """Do that from time to time, until cancelled."""
        while True:
            await asyncio.sleep(KEEP_INTERVAL)
            self._now()
            self.keep()

    def _begin(self, reading: Reading) -> _State:
        wall = reading.wall - reading.since_boot
        known = self._remembered()
        if known is None:
            return _State(reading.boot, wall, wall, reading.wall, 0, [])
        if known.boot == reading.boot:
            return known
        # Never earlier than what was shown before, also where the machine came up with an older time.
        shown = max(reading.wall, known.last) - reading.since_boot
        return _State(reading.boot, wall, shown, known.last, known.shown - known.wall, known.skips)

    def _remembered(self) -> _State | None:
        try:
            known = _State(**json.loads(self._memory.read_text())) if self._memory else None
        except (FileNotFoundError, ValueError, TypeError):
            return None
        if known is not None:
            known.skips = [(since, until) for since, until in known.skips]
        return known

    def _now(self) -> int:
        with self._lock:
            reading, state = self._read(), self._state
            wall = reading.wall - reading.since_boot
            was_set = abs(wall - state.wall) > GRAIN
            if was_set:
                self._follow(wall, reading.since_boot)
            state.last = reading.since_boot + state.shown
        if was_set:
            self.keep()
        return state.last

    def _follow(self, wall: int, since_boot: int) -> None:
        """The wall was set: stay where it fell behind, go along where it is ahead."""
        state = self._state
        self._ahead_before_set = state.shown - state.wall
        state.wall = wall
        if wall > state.shown:
            state.skips.append((since_boot + state.shown, since_boot + wall))
            state.shown = wall


def _time(nanoseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=nanoseconds // 1000)
