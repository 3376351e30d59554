"""Restart policy: which ends of sandboxes count as crashes, and how long to wait before the next attempt."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from builderd.domain.sandboxes import EndCause, Sandbox

#: So many exits within this time, and an always_on app is given up.
MAX_EXITS = 5
EXIT_WINDOW = timedelta(minutes=10)
FIRST_RESTART_DELAY = timedelta(seconds=1)
MAX_RESTART_DELAY = timedelta(seconds=60)


def next_attempt(sandboxes: Sequence[Sandbox]) -> int:
    """Of a run of which these are known: early ones of a long run may be forgotten."""
    return max((one.attempt for one in sandboxes), default=0) + 1


def delay_before_restart(ends: Sequence[Sandbox], now: datetime) -> timedelta:
    """How long after its last end it is started again.

    The first lost monitor is the machine's fault and delays nothing; one after the other delay like crashes, and are
    never given up.
    """
    if is_crash(ends[-1]):
        return restart_delay(len(recent_crashes(ends, now)))
    if _lost_its_monitor(ends[-1]):
        return restart_delay(len([end for end in ends if _lost_its_monitor(end) and _is_recent(end, now)]) - 1)
    return timedelta(0)


def is_crash(sandbox: Sandbox) -> bool:
    """Whether the app's own doing ended it (an unknown end counts, so that nothing restarts for ever)."""
    return sandbox.end is not None and sandbox.end.cause in (
        EndCause.EXITED,
        EndCause.OUT_OF_MEMORY,
        EndCause.UNKNOWN,
    )


def recent_crashes(sandboxes: Sequence[Sandbox], now: datetime) -> Sequence[Sandbox]:
    """Those that count towards ``MAX_EXITS``."""
    return [one for one in sandboxes if is_crash(one) and _is_recent(one, now)]


def _lost_its_monitor(sandbox: Sandbox) -> bool:
    return sandbox.end is not None and sandbox.end.cause is EndCause.MONITOR_LOST


def _is_recent(sandbox: Sandbox, now: datetime) -> bool:
    return end_time(sandbox) > now - EXIT_WINDOW


def restart_delay(exits: int) -> timedelta:
    """0, 1, 2, 4, … seconds after none, one, two, three exits, at most a minute."""
    return min(FIRST_RESTART_DELAY * (1 << exits - 1), MAX_RESTART_DELAY) if exits > 0 else timedelta(0)


def end_time(sandbox: Sandbox) -> datetime:
    assert sandbox.end is not None
    return sandbox.end.at or sandbox.created_at
