"""Route: set or remove the preview's route, and wait for requests in flight before a handover.

Recorded: nothing, since the proxy itself says which routes it has.
Left when killed: the old route or the new one.
"""

from __future__ import annotations

from builderd.application import Application
from builderd.previews.model import Route
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result

#: Seconds for the old version's open requests to finish, then seconds for the old version itself to end.
DRAIN_TIMEOUT, GRACE = 10.0, 5.0
#: Least seconds for the old version to end, however long its requests took.
LEAST_GRACE = 1.0
#: How often they are counted, in seconds.
DRAIN_INTERVAL = 0.005


async def set_route(app: Application, route: Route) -> Result:
    await app.previews.put(route)
    return Result()


async def remove_route(app: Application, item: WorkItem) -> Result:
    await app.previews.remove(item.builder.host)
    return Result()


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
