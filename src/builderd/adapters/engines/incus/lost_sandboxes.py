"""Sandboxes on members that are away and that are to end: reported as stopped now, ended when their member returns.

A member that was cut off runs them until then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from builderd.adapters.engines.incus.client import IncusClient, Json
from builderd.adapters.engines.incus.deferred import Deferred
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.reports import make_end
from builderd.adapters.engines.incus.routes import Routes
from builderd.adapters.engines.incus.volumes import own_of

log = logging.getLogger(__name__)


class LostSandboxes:
    def __init__(self, client: IncusClient, instances: Instances, routes: Routes) -> None:
        self._deferred = Deferred(client, "end")
        self._instances = instances
        self._routes = routes
        #: Names of their instances.
        self._names: set[str] = set()

    async def load(self) -> None:
        """Read what an earlier service noted."""
        self._names = set(await self._deferred.all())

    def has(self, name: str) -> bool:
        """Return True if the instance is to be ended, or is being ended."""
        return name in self._names

    async def end_later(self, found: Json) -> None:
        """Have the instance ended when its member returns. Idempotent."""
        name, member = found["name"], str(found.get("location"))
        if name not in self._names:
            log.warning("app is ended when its member returns instance=%s member=%s", name, member)
            await self._deferred.note(name, member)
            self._names.add(name)

    async def end_on(self, members: Collection[str]) -> None:
        """End what was to be ended on these members, which answer again."""
        for name, member in (await self._deferred.all()).items():
            if member in members:
                await self.end(name)

    async def end(self, name: str) -> None:
        """End an instance, whose log stays, and take its volumes from it. Idempotent."""
        found = await self._instances.find(name)
        if found is not None:
            await self._instances.kill(name)
            await self._routes.remove(own_of(found).get("ip", ""))
            if (ended := await self._instances.find(name)) is not None:
                await self._instances.strip(ended, _own_of_ended(ended))
        await self._deferred.remove([name])
        self._names.discard(name)


def _own_of_ended(found: Json) -> dict[str, str]:
    own, now = own_of(found), time.time()
    ended = {"removed": f"{now:.0f}", "ip": ""}
    if "end" not in own and "started" in own:
        ended["end"] = make_end({**own, "stopping": f"{now:.6f}"}, None, host_restarted=False, now=now)
    return ended
