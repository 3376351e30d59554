"""Routes of a standby's machine to the apps of other members that its list of routes has."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from builderd.domain.errors import EngineUnavailable
from builderd.ports.engine import ClusterProvider

log = logging.getLogger(__name__)
#: Seconds for which the way to an app stays once its route is closed, for visits that are open. Its address is no other
#: app's for longer than that (``domain.route_list.RESERVED_SECONDS``).
LEFT_SECONDS = 60.0


class StandbyHops:
    """The machine has no others (address of an app → address of its member)."""

    def __init__(self, provider: ClusterProvider) -> None:
        self._provider = provider
        self._wanted: Mapping[str, str] = {}
        #: Those of closed routes, and when they were closed.
        self._left: dict[str, tuple[str, float]] = {}
        #: Those that the kernel has; None where they may be any.
        self._put: Mapping[str, str] | None = {}
        self._is_put = False

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
        now = time.monotonic()
        self._left |= {one: (via, now) for one, via in self._wanted.items() if one not in wanted}
        self._left = {
            one: left for one, left in self._left.items() if one not in wanted and now - left[1] < LEFT_SECONDS
        }
        self._wanted = dict(wanted)
        self._is_put = await self._change({**{one: via for one, (via, _) in self._left.items()}, **wanted})
        return self._is_put

    async def clear(self) -> None:
        """Lead to none, also to those that another process has left."""
        self._wanted, self._left, self._put, self._is_put = {}, {}, None, False
        await self._change({})

    async def _change(self, hops: Mapping[str, str]) -> bool:
        if hops == self._put:
            return True
        self._put = None
        try:
            await self._provider.put_standby_routes(hops)
        except EngineUnavailable as error:
            log.warning("routes to apps of other members not changed error=%s", error.message)
            return False
        self._put = hops
        return True
