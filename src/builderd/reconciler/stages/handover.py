"""Handover from one version to another while visitors' requests are paused.

A visitor waits 30 seconds at most. In these the old version finishes what it was asked and ends, the new one starts,
and should it not come up, the old one starts again.
"""

from __future__ import annotations

from builderd.domain.sandboxes import Sandbox
from builderd.reconciler.core.observe import WorkItem
from builderd.services.application import Application
from builderd.store import UnitOfWork

#: Seconds for the old version's open requests to finish, then seconds for the old version itself to end.
DRAIN_TIMEOUT, GRACE = 10.0, 5.0
#: Least seconds for the old version to end, however long its requests took.
LEAST_GRACE = 1.0
#: How often they are counted, in seconds.
DRAIN_INTERVAL = 0.005
#: What is left of a visitor's time once the old version has ended, with some to spare, in seconds.
LEFT = 18.0
#: Least seconds for a new version to listen.
MIN_HANDOVER_SECONDS = 5.0


async def drained(application: Application, host: str) -> float:
    """Wait until the app has answered the requests that came before new ones were paused.

    Return how many seconds that took, about ``DRAIN_TIMEOUT`` at most.
    """
    clock = application.clock
    begun, seconds = clock.passed(), 0.0
    while seconds < DRAIN_TIMEOUT and await application.previews.open_requests(host):
        await clock.sleep(DRAIN_INTERVAL)
        seconds = clock.passed() - begun
    return seconds


def grace(usual: float, drained_for: float) -> float:
    """Return how long the old version may take to end, in seconds, less the time its last requests took."""
    return min(usual, max(GRACE - drained_for, LEAST_GRACE))


def last_starts(uow: UnitOfWork, item: WorkItem) -> tuple[Sandbox | None, Sandbox | None]:
    """The latest trial of the version that takes over, and the latest run of the current one that listened."""
    sandboxes, current = uow.sandboxes.list(item.builder.id), item.builder.version
    trials = [one for one in sandboxes if one.trial and one.version == item.version.number]
    runs = [one for one in sandboxes if not one.trial and one.version == current and one.listening_at]
    return (trials[-1] if trials else None), (runs[-1] if runs else None)


def time_limit(trial: Sandbox | None, old: Sandbox | None, usual: float, longest: float) -> float:
    """Return how long a version that takes over may take to listen: the timeout of its start, in seconds.

    The time covers the visitors' wait for it and, should it fail, for the old version's restart. A version that was
    too slow for that on trial gets ``longest``, the full start timeout, and visitors see a page that says it starts.
    One whose trial did not listen, for lack of a network or on a busy machine, counts as slow as its predecessor.
    """
    before = _startup_seconds(old)
    allowed = min(usual, max(LEFT - (before or 0.0), MIN_HANDOVER_SECONDS), longest)
    startup = _startup_seconds(trial)
    if startup is None:
        startup = before
    return longest if startup is not None and startup > allowed / 2 else allowed


def _startup_seconds(sandbox: Sandbox | None) -> float | None:
    if sandbox is None or sandbox.listening_at is None or sandbox.started_at is None:
        return None
    return (sandbox.listening_at - sandbox.started_at).total_seconds()
