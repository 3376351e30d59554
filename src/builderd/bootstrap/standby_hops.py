"""Routes of a standby's machine to the apps of other members that its list of routes has."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from builderd.domain.errors import EngineUnavailable
from builderd.ports.engine import ClusterProvider

log = logging.getLogger(__name__)
#: Seconds for which the way to an app stays once its route is closed, for visits that are open. Its address is no other
#: app's for longer than that (``domain.route_list.RESERVED_SECONDS``).
LEFT_SECONDS = 60.0


class StandbyHops:
    """The machine has no others (address of an app → address of its member). Calls may be cancelled."""

    def __init__(self, provider: ClusterProvider) -> None:
        self._provider = provider
        self._wanted: Mapping[str, str] = {}
        #: Those of closed routes, and when they were closed.
        self._left: dict[str, tuple[str, float]] = {}
        #: Those that the kernel has; None where they may be any.
        self._put: Mapping[str, str] | None = {}
        self._is_put = False
        #: Addresses to which the kernel takes no route: their visits are passed on.
        self.lost: frozenset[str] = frozenset()
        #: One change at a time: another one would see what the first is about to remove.
        self._lock = asyncio.Lock()

    @property
    def has_any(self) -> bool:
        """Return True if the kernel has some, or may have."""
        return self._put is None or bool(self._put)

    @property
    def is_put(self) -> bool:
        """Return True once ``put`` has succeeded, and was not taken back."""
        return self._is_put

    async def put(self, wanted: Mapping[str, str]) -> bool:
        """Lead to these apps; return False where that failed, so that their visits would fail."""
        async with self._lock:
            self._is_put, now = False, time.monotonic()
            self._left |= {one: (via, now) for one, via in self._wanted.items() if one not in wanted}
            self._wanted = dict(wanted)
            return await self._change()

    async def renew(self) -> None:
        """Put again what others have removed: a restarted network daemon, or an administrator."""
        async with self._lock:
            if self._is_put and self._put:
                self._put = None
                await self._change()

    async def clear(self, unless: Callable[[], bool] = lambda: False) -> None:
        """Lead to none, also to those that another process has left, ``unless`` they are needed once it is time."""
        async with self._lock:
            if not unless():
                self._wanted, self._left, self._put, self._is_put = {}, {}, None, False
                await self._change()
                self._is_put = False

    async def _change(self) -> bool:
        """Have the routes that are wanted, and those of closed ones for a while; return False where that failed."""
        now = time.monotonic()
        self._left = {
            one: left for one, left in self._left.items() if one not in self._wanted and now - left[1] < LEFT_SECONDS
        }
        hops = {**{one: via for one, (via, _) in self._left.items()}, **self._wanted}
        if hops != self._put:
            self._is_put, self._put = False, None
            try:
                lost = frozenset(await self._provider.put_standby_routes(hops))
            except EngineUnavailable as error:
                log.warning("routes to apps of other members not changed error=%s", error.message)
                return False
            if lost - self.lost:
                log.warning("no routes to some apps of other members, their visits are passed on apps=%d", len(lost))
            self._put, self.lost = hops, lost
        self._is_put = True
        return True
