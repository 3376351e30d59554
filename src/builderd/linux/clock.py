"""A monotonic system clock: it never goes back while the service runs.

It advances with ``CLOCK_BOOTTIME``, which cannot be set and which counts during a suspend. The wall clock decides at
the start: no clock begins ahead of it. After that a step of the wall clock changes nothing for an hour, so that a wrong
clock which is put right passes unnoticed. A step forward that lasts is followed then, as time that has passed. A step
back is followed at the next start.

The state is saved in a file, so that the next service also notices a change made while none ran.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from builderd.linux import atomic_files
from builderd.linux.atomic_files import from_stored, to_stored
from builderd.linux.processes import boot_id

log = logging.getLogger(__name__)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Nanoseconds. The two clocks are read one after the other: a smaller difference is no step of the wall clock.
STEP_TOLERANCE = 20_000_000
#: Seconds between two saves.
SAVE_INTERVAL = 10.0
#: Nanoseconds. A longer step forward, also one over a restart of the machine, deletes nothing for ``DELAY``.
LONG_STEP, DELAY = 3_600 * 10**9, 24 * 3_600 * 10**9
#: Nanoseconds. A step forward is followed once it has lasted so long; a shorter one, such as NTP's slewing, at once.
FOLLOW_AFTER, FOLLOWED_STEP = 3_600 * 10**9, 10**9
#: Nanoseconds. A difference from the wall clock that is reported.
REPORTED = 5 * 10**9


class ClockReading(NamedTuple):
    """Both clocks at one moment: ``boot`` is the boot id; ``since_boot`` and ``wall`` (since 1970) in nanoseconds."""

    boot: str
    since_boot: int
    wall: int


def read_clocks() -> ClockReading:
    """Read both clocks, the wall clock first: a pause in between must not look like a step of it forward."""
    boot, wall = boot_id(), time.time_ns()
    return ClockReading(boot, time.clock_gettime_ns(time.CLOCK_BOOTTIME), wall)


@dataclass(slots=True)
class _State:
    """The saved state, in nanoseconds; the names are the keys of the file."""

    boot: str
    #: This clock at the moment of the boot, since 1970.
    shown: int
    #: The latest time that any service returned: rows may have it, also where this clock began before it.
    latest: int = 0
    #: Since when the wall clock is ahead of this one, from the boot on; 0: it is not.
    ahead_since: int = 0
    #: (until, size): steps forward by which ``deletable`` lags until then.
    held: list[tuple[int, int]] = field(default_factory=list)
    unknown: Mapping[str, Any] = field(default_factory=dict)


class SystemClock:
    """Implements ``ports.clock.Clock``. ``memory`` is the state file; without one, the state ends with the process."""

    def __init__(
        self, memory: Path | None = None, read: Callable[[], ClockReading] = read_clocks, *, begins: bool = True
    ) -> None:
        """Begin no later than the wall clock. Without ``begins``: show a running service's clock, and save nothing."""
        self._memory = memory
        self._begins = begins
        self._read = read
        self._lock = threading.Lock()
        #: True if the last save failed: the next failure is not logged again.
        self._save_failed = False
        first = read()
        #: The wall clock at the moment of the boot, by the last reading.
        self._wall = first.wall - first.since_boot
        self._state = self._begin(first)
        self.now()
        self.save()

    def now(self) -> datetime:
        return _time(self._now())

    def deletable(self) -> datetime:
        now = self._now()
        with self._lock:
            calendar = min(now, now - self._state.shown + self._wall)
            return _time(calendar - sum(size for until, size in self._state.held if until > now))

    def passed(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def seconds(self) -> float:
        """Return ``now`` in seconds since 1970."""
        return self._now() / 1e9

    def at(self, wall: float) -> float:
        """Translate a wall clock time, such as a file's mtime, to this clock. In seconds since 1970, never after now.

        A time from before the wall clock was set is off by that step.
        """
        now = self._now()
        with self._lock:
            ahead = self._state.shown - self._wall
        return min(wall + ahead / 1e9, now / 1e9)

    def fault(self) -> str:
        now = self._now()
        with self._lock:
            state, ahead = self._state, self._state.shown - self._wall
        if ahead > REPORTED:
            return (
                f"the machine's clock was set back: the service is {_duration(ahead)} ahead of it until it is "
                "restarted. Set the clock right if it is wrong, or restart the service."
            )
        if -ahead > REPORTED:
            follows = _time(state.shown + state.ahead_since + FOLLOW_AFTER)
            return (
                f"the machine's clock was set forward by {_duration(-ahead)}: the service follows it at "
                f"{follows:%H:%M} UTC of its own time. Set the clock right before that if it is wrong."
            )
        if state.latest - now > REPORTED:
            return (
                f"the service had times until {_time(state.latest):%Y-%m-%d %H:%M} UTC before: rows may lie in the "
                "future. Set the machine's clock right if it is wrong; otherwise stop the service and run `builderd "
                "clock repair`."
            )
        return ""

    def forget_latest(self) -> None:
        """Forget that there were later times than now: no row has one any more."""
        with self._lock:
            self._state.latest = 0
        self.save()

    def save(self) -> None:
        """Write the state file. A failure, such as a full disk, is logged; a later call tries again."""
        if self._memory is None or not self._begins:
            return
        with self._lock:
            content = json.dumps(to_stored(self._state)).encode()
        try:
            atomic_files.replace(self._memory, content, mode=0o644)
        except OSError:
            if not self._save_failed:
                log.warning("clock state not saved, a later save tries again path=%s", self._memory, exc_info=True)
            self._save_failed = True
        else:
            self._save_failed = False

    async def save_periodically(self) -> None:
        """Save the state every ``SAVE_INTERVAL`` seconds until cancelled, in a thread: a stalled disk may block it."""
        while True:
            await asyncio.sleep(SAVE_INTERVAL)
            self._now()
            await asyncio.to_thread(self.save)

    def _begin(self, reading: ClockReading) -> _State:
        saved = self._load()
        if saved is None:
            return _State(reading.boot, self._wall)
        is_ahead = saved.shown - self._wall > STEP_TOLERANCE
        if saved.boot == reading.boot and not (is_ahead and self._begins):
            return saved
        _note_step(saved, saved.latest, reading.wall)
        saved.boot, saved.shown, saved.ahead_since = reading.boot, self._wall, 0
        return saved

    def _load(self) -> _State | None:
        try:
            saved = from_stored(_State, json.loads(self._memory.read_text())) if self._memory else None
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return None
        if saved is not None:
            saved.held = [(until, size) for until, size in saved.held]
        return saved

    def _now(self) -> int:
        with self._lock:
            reading, state = self._read(), self._state
            self._wall = reading.wall - reading.since_boot
            follows = self._is_followed(reading.since_boot)
            if follows:
                before = max(reading.since_boot + state.shown, state.latest)
                _note_step(state, before, reading.wall)
                state.shown, state.ahead_since = self._wall, 0
            now = reading.since_boot + state.shown
            state.latest = max(state.latest, now)
        if follows:
            self.save()
        return now

    def _is_followed(self, since_boot: int) -> bool:
        """Return True if a step forward is short, has lasted, or ends a time before that of earlier rows."""
        state, step = self._state, self._wall - self._state.shown
        if step <= STEP_TOLERANCE:
            state.ahead_since = 0
            return False
        state.ahead_since = state.ahead_since or since_boot
        has_lasted = since_boot - state.ahead_since >= FOLLOW_AFTER
        return step <= FOLLOWED_STEP or has_lasted or since_boot + state.shown < state.latest


def _note_step(state: _State, before: int, after: int) -> None:
    """Note a step from ``before`` to ``after`` if it is a long one forward, and drop those whose day has passed."""
    step = after - before
    state.held = [(until + step, size) for until, size in state.held if until > before]
    if step > LONG_STEP:
        state.held.append((after + DELAY, step))


def _time(nanoseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=nanoseconds // 1000)


def _duration(nanoseconds: int) -> str:
    return str(timedelta(seconds=nanoseconds // 10**9))
