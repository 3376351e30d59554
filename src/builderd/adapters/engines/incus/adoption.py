"""Adoption of apps that run, by a starting service and on members that return: routes, and thawing after copies."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from builderd.adapters.engines.incus.client import Json
from builderd.adapters.engines.incus.freezer import Freezer
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.reports import is_sandbox
from builderd.adapters.engines.incus.routes import Routes
from builderd.adapters.engines.incus.volumes import own_of

log = logging.getLogger(__name__)


class Adoption:
    def __init__(self, instances: Instances, routes: Routes, freezer: Freezer) -> None:
        self._instances = instances
        self._routes = routes
        self._freezer = freezer

    async def adopt(self) -> None:
        """Route to what runs, and thaw instances that an earlier service froze for a copy of their disks."""
        alive = await self._routed()
        await self._routes.sync({own_of(found)["ip"]: found["location"] for found in alive})
        for found in alive:
            await self._freezer.thaw_left(found)

    async def adopt_on(self, members: Collection[str]) -> None:
        """Route to what runs on members that returned, and thaw what a copy left frozen, while apps start and end."""
        alive = await self._routed()
        for found in alive:
            if found["location"] in members:
                # No route is removed: the list may be older than an app that has started.
                await self._routes.add(own_of(found)["ip"], found["location"])
        for found in alive:
            await self._freezer.thaw_left(found)

    async def _routed(self) -> Sequence[Json]:
        """Return the sandboxes that have an address. No two have the same: one that has a later one's is ended."""
        listed = [found for found in await self._instances.all() if is_sandbox(found) and own_of(found).get("ip")]
        routed: dict[str, Json] = {}
        for found in sorted(listed, key=lambda one: float(own_of(one).get("started", 0))):
            if earlier := routed.get(own_of(found)["ip"]):
                await self._end_doubled(earlier, found)
            routed[own_of(found)["ip"]] = found
        return list(routed.values())

    async def _end_doubled(self, found: Json, later: Json) -> None:
        """End a sandbox whose address another got while their members did not know of each other."""
        address = own_of(found)["ip"]
        log.error(
            "app ended: another has its address instance=%s other=%s ip=%s", found["name"], later["name"], address
        )
        # First: what is removed takes the route to its address with it.
        await self._instances.mark(found["name"], {"ip": ""})
        await self._instances.kill(found["name"])
