"""Restart policy: which ends of sandboxes count as crashes, and how long to wait before the next attempt."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from builderd.domain.sandboxes import MACHINE_CAUSES, EndCause, Sandbox

#: An always_on app with this many crashes within the window is given up.
MAX_EXITS = 5
EXIT_WINDOW = timedelta(minutes=10)
FIRST_RESTART_DELAY = timedelta(seconds=1)
MAX_RESTART_DELAY = timedelta(seconds=60)


def next_attempt(sandboxes: Sequence[Sandbox]) -> int:
    """Return the number of the next attempt; the sandboxes of early attempts may be missing."""
    return max((one.attempt for one in sandboxes), default=0) + 1


def delay_before_restart(ends: Sequence[Sandbox], now: datetime) -> timedelta:
    """Return the delay between the last end and the next start.

    The first end by a fault of the machine delays nothing; repeated ones delay like crashes, but are never given up.
    """
    if is_crash(ends[-1]):
        return restart_delay(len(recent_crashes(ends, now)))
    if _by_the_machine(ends[-1]):
        return restart_delay(len([end for end in ends if _by_the_machine(end) and _is_recent(end, now)]) - 1)
    return timedelta(0)


def is_crash(sandbox: Sandbox) -> bool:
    """Return True if the app ended by itself. An unknown end counts, so that no app restarts for ever."""
    return sandbox.end is not None and sandbox.end.cause in (
        EndCause.EXITED,
        EndCause.OUT_OF_MEMORY,
        EndCause.UNKNOWN,
    )


def recent_crashes(sandboxes: Sequence[Sandbox], now: datetime) -> Sequence[Sandbox]:
    """Return the crashes that count towards ``MAX_EXITS``."""
    return [one for one in sandboxes if is_crash(one) and _is_recent(one, now)]


def _by_the_machine(sandbox: Sandbox) -> bool:
    return sandbox.end is not None and sandbox.end.cause in MACHINE_CAUSES


def _is_recent(sandbox: Sandbox, now: datetime) -> bool:
    return end_time(sandbox) > now - EXIT_WINDOW


def restart_delay(exits: int) -> timedelta:
    """Return 0, 1, 2, 4, … seconds after none, one, two, three exits, at most a minute."""
    return min(FIRST_RESTART_DELAY * (1 << exits - 1), MAX_RESTART_DELAY) if exits > 0 else timedelta(0)


def end_time(sandbox: Sandbox) -> datetime:
    assert sandbox.end is not None
    return sandbox.end.at or sandbox.created_at
