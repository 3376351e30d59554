"""A monotonic system clock: billed time is never counted twice, and none is left out.

It advances with ``CLOCK_BOOTTIME``, which cannot be set and which counts during a suspend. The wall clock decides at
the start: no clock begins ahead of it. After that a step of the wall clock changes nothing for an hour, so that a wrong
clock which is put right passes unnoticed. A step forward that lasts is followed then, with a ``Skip``: no time passed
in it. A step back is followed at the next start, since this clock never goes back while it runs.

The state is saved in a file, so that the next service also notices a change made while none ran.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from builderd.linux import atomic_files
from builderd.linux.json_files import from_stored, to_stored
from builderd.linux.processes import boot_id
from builderd.ports.clock import Skip

log = logging.getLogger(__name__)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Nanoseconds. The two clocks are read one after the other: a smaller difference is no step of the wall clock.
STEP_TOLERANCE = 20_000_000
#: The clocks are read this many times, if none of the reads was quick (nanoseconds); the quickest counts.
ATTEMPTS, QUICK = 3, 50_000
#: Seconds between two saves: after a restart of the machine the time is never earlier than the last one.
SAVE_INTERVAL = 10.0
#: Nanoseconds. A longer step forward, also one over a restart of the machine, deletes nothing for ``HOLD``.
HELD_STEP, HOLD = 3_600 * 10**9, 24 * 3_600 * 10**9
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
    """Read both clocks. On a busy machine the process may pause between the two, which must not look like a step."""
    took, reading = _read_once()
    for _ in range(ATTEMPTS - 1):
        if took <= QUICK:
            break
        took, reading = min((took, reading), _read_once(), key=lambda timed: timed[0])
    return reading


def _read_once() -> tuple[int, ClockReading]:
    """Read both clocks; the first item is the duration in nanoseconds."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    wall = time.time_ns()
    took = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - before
    return took, ClockReading(boot_id(), before + took // 2, wall)


@dataclass(slots=True)
class _State:
    """The saved state. All times in nanoseconds since 1970; the names are the keys of the file."""

    boot: str
    #: The wall clock and this clock at the moment of the boot, extrapolated back.
    wall: int
    shown: int
    #: The latest time that this clock returned.
    last: int
    #: Nanoseconds by which this clock was ahead of the wall clock in the boot before.
    ahead_before: int
    #: (since, until) of skips that are not settled.
    skips: list[tuple[int, int]]
    #: (until, size): steps forward by which ``deletable`` lags until then.
    held: list[tuple[int, int]] = field(default_factory=list)
    #: When the wall clock was last set, in nanoseconds since the boot, and by how much this clock was ahead before.
    set_at: int = 0
    ahead_before_set: int = 0
    #: The latest time that any service returned: rows may have it, also where this clock began before it.
    latest: int = 0
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
        #: Held while the file is written, so that the newest state is the last.
        self._saving = threading.Lock()
        #: True if the last save failed: the next failure is not logged again.
        self._save_failed = False
        first = read()
        self._state = self._begin(first)
        self.now()
        self.save()

    def now(self) -> datetime:
        return _time(self._now())

    def calendar(self) -> datetime:
        now = self._now()
        with self._lock:
            return _time(self._calendar(now))

    def deletable(self) -> datetime:
        now = self._now()
        with self._lock:
            return _time(self._calendar(now) - sum(size for until, size in self._state.held if until > now))

    def _calendar(self, now: int) -> int:
        return min(now, now - self._state.shown + self._state.wall)

    def passed(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def poll(self, check: Callable[[], bool], pause: float, most: int) -> int:
        loop = asyncio.get_running_loop()
        polled: asyncio.Future[int] = loop.create_future()
        timer: asyncio.TimerHandle
        deadline = loop.time() + most * pause

        def tick(number: int) -> None:
            nonlocal timer
            if polled.done():  # its caller was cancelled
                return
            try:
                holds = check()
            except Exception as error:
                polled.set_exception(error)
                return
            if holds:
                polled.set_result(number)
            elif number >= most or loop.time() >= deadline:
                polled.set_result(most)
            else:
                timer = loop.call_at(_aligned(loop.time(), pause), tick, number + 1)

        # Callbacks of the loop: to resume the caller's tasks and coroutines for each check takes ten times as long.
        timer = loop.call_at(_aligned(loop.time(), pause), tick, 1)
        try:
            return await polled
        finally:
            timer.cancel()

    def skips(self) -> Sequence[Skip]:
        with self._lock:
            return [Skip(_time(since), _time(until)) for since, until in self._state.skips]

    def settle(self, skip: Skip) -> None:
        with self._lock:
            self._state.skips = [one for one in self._state.skips if _time(one[0]) != skip.since]
        self.save()

    def seconds(self) -> float:
        """Return ``now`` in seconds since 1970."""
        return self._now() / 1e9

    def at(self, wall: float) -> float:
        """Translate a wall clock time, such as a file's mtime, to this clock. In seconds since 1970, never after now.

        A wall time that lies in the future, or that a step forward left out, was read before the wall clock was set.
        Of a time that the wall clock passed twice, the second is meant.
        """
        now = self._now()
        with self._lock:
            state, then = self._state, int(wall * 1e9)
            ahead, before = state.shown - state.wall, state.ahead_before_set
            is_later = then > now - ahead + STEP_TOLERANCE
            if is_later or (before > ahead and then < state.set_at + state.wall - STEP_TOLERANCE):
                ahead = before
            if not is_later and then < state.shown - ahead:
                ahead = state.ahead_before
        return min(wall + ahead / 1e9, now / 1e9)

    def fault(self) -> str:
        now = self._now()
        with self._lock:
            state = self._state
        ahead, latest = state.shown - state.wall, state.latest
        if ahead > REPORTED:
            return (
                f"the machine's clock was set back: the service is {_duration(ahead)} ahead of it until it is "
                "restarted. Set the clock right if it is wrong, or restart the service."
            )
        if -ahead > REPORTED:
            follows = _time(state.shown + state.set_at + FOLLOW_AFTER)
            return (
                f"the machine's clock was set forward by {_duration(-ahead)}: the service follows it at "
                f"{follows:%H:%M} UTC of its own time. Set the clock right before that if it is wrong."
            )
        if latest - now > REPORTED:
            return (
                f"the service had times until {_time(latest):%Y-%m-%d %H:%M} UTC before: rows may lie in the future. "
                "Set the machine's clock right if it is wrong; otherwise stop the service and run `builderd clock "
                "repair`."
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
        try:
            self._write(self._memory)
        except OSError:
            if not self._save_failed:
                log.warning("clock state not saved, a later save tries again path=%s", self._memory, exc_info=True)
            self._save_failed = True
        else:
            self._save_failed = False

    def _write(self, memory: Path) -> None:
        # Without the lock of the readings: a disk may take its time.
        with self._saving:
            with self._lock:
                content = json.dumps(to_stored(self._state)).encode()
            atomic_files.replace(memory, content, mode=0o644)

    async def save_periodically(self) -> None:
        """Save the state every ``SAVE_INTERVAL`` seconds until cancelled, in a thread: a stalled disk may block it."""
        while True:
            await asyncio.sleep(SAVE_INTERVAL)
            self._now()
            await asyncio.to_thread(self.save)

    def _begin(self, reading: ClockReading) -> _State:
        wall = reading.wall - reading.since_boot
        saved = self._load()
        if saved is None:
            return _State(reading.boot, wall, wall, reading.wall, 0, [])
        saved.latest = max(saved.latest, saved.last)
        if saved.boot == reading.boot:
            # Two readings of one machine differ by some microseconds, which are no time that the ledger leaves out.
            if self._begins and (ahead := saved.shown - wall) > STEP_TOLERANCE:
                saved.shown = wall
                saved.ahead_before_set -= ahead
                saved.held = [(until - ahead, size) for until, size in saved.held]
            return saved
        begun = replace(saved, boot=reading.boot, wall=wall, shown=wall, ahead_before=saved.shown - saved.wall)
        begun.set_at = begun.ahead_before_set = 0
        _hold(begun, saved.last, reading.wall)
        return begun

    def _load(self) -> _State | None:
        try:
            saved = from_stored(_State, json.loads(self._memory.read_text())) if self._memory else None
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return None
        if saved is not None:
            saved.skips = [(since, until) for since, until in saved.skips]
            saved.held = [(until, size) for until, size in saved.held]
        return saved

    def _now(self) -> int:
        with self._lock:
            reading, state = self._read(), self._state
            wall = reading.wall - reading.since_boot
            was_set = abs(wall - state.wall) > STEP_TOLERANCE
            if was_set:
                if abs(wall - state.wall) > FOLLOWED_STEP:
                    state.set_at, state.ahead_before_set = reading.since_boot, state.shown - state.wall
                state.wall = wall
            follows = state.wall > state.shown and self._is_followed(reading.since_boot)
            if follows:
                self._follow(reading.since_boot)
            state.last = reading.since_boot + state.shown
        if was_set or follows:
            self.save()
        return state.last

    def _is_followed(self, since_boot: int) -> bool:
        """Return True if the step forward is short, has lasted, or ends a time before that of earlier rows."""
        state = self._state
        is_short = state.wall - state.shown <= FOLLOWED_STEP
        return is_short or since_boot - state.set_at >= FOLLOW_AFTER or since_boot + state.shown < state.latest

    def _follow(self, since_boot: int) -> None:
        """Follow a step forward, with a skip of the time that no row can have yet."""
        state = self._state
        now, after = since_boot + state.shown, since_boot + state.wall
        state.shown = state.wall
        if (since := max(now, state.latest)) < after:
            state.skips.append((since, after))
            _hold(state, since, after)


def _aligned(now: float, pause: float) -> float:
    """Return a multiple of the pause, about as long after now: those who wait equally long are woken together."""
    # A timer may come a moment early.
    return (math.floor(now / pause + 0.25) + 1) * pause


def _hold(state: _State, before: int, after: int) -> None:
    """Note a step forward from ``before`` to ``after`` if it is long, and drop those whose day has passed."""
    step = after - before
    state.held = [(until + step, size) for until, size in state.held if until > before]
    if step > HELD_STEP:
        state.held.append((after + HOLD, step))


def _time(nanoseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=nanoseconds // 1000)


def _duration(nanoseconds: int) -> str:
    return str(timedelta(seconds=nanoseconds // 10**9))
