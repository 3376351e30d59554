"""Work on members that are away, done once they return: disks are deleted, and sandboxes end.

A member that was cut off runs its sandboxes until then. Each note stands in the configuration of the service's project
(``user.builderd.<kind>.<id>``, its member): the database of the cluster keeps it over restarts of this service.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping

from builderd.adapters.engines.incus.client import IncusClient, Json
from builderd.adapters.engines.incus.cluster import FEATURES
from builderd.adapters.engines.incus.disks import volume_of
from builderd.adapters.engines.incus.instance import OWN
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.network import Routes
from builderd.adapters.engines.incus.volumes import Volumes, own_of, users_of
from builderd.domain.ids import DiskId

log = logging.getLogger(__name__)

_DELETE, _END = f"{OWN}delete.", f"{OWN}end."


class LostParts:
    def __init__(self, client: IncusClient, volumes: Volumes, instances: Instances, routes: Routes) -> None:
        self._client = client
        self._volumes = volumes
        self._instances = instances
        self._routes = routes
        self._path = f"/projects/{client.project}"
        #: Instances of sandboxes that are to end.
        self._ending: set[str] = set()

    async def load(self) -> None:
        """Read what an earlier service noted."""
        self._ending = set(await self._notes(_END))

    def has(self, instance: str) -> bool:
        """Return True for an instance that is to be ended when its member returns."""
        return instance in self._ending

    async def end_later(self, found: Json) -> None:
        """Have the instance ended when its member returns. Idempotent."""
        name, member = found["name"], str(found.get("location"))
        if name not in self._ending:
            log.warning("app is ended when its member returns instance=%s member=%s", name, member)
            await self._change({f"{_END}{name}": member})
            self._ending.add(name)

    async def delete_later(self, disk: DiskId, away: Collection[str]) -> bool:
        """Have a disk deleted when its member returns; False where it lies on a member that answers, or nowhere."""
        places = await self._volumes.places(volume_of(disk)) if away else []
        if not places or not set(away).issuperset(places):
            return False
        log.warning("disk is deleted when its member returns disk=%s member=%s", disk, places[0])
        await self._change({f"{_DELETE}{disk}": places[0]})
        return True

    async def finish_on(self, members: Collection[str]) -> None:
        """Delete and end what is noted of these members, which answer again. With a disk goes the app that has it."""
        for disk, member in (await self._notes(_DELETE)).items():
            if member in members:
                await self._delete(DiskId(disk), member)
                await self._change({}, f"{_DELETE}{disk}")
        for name, member in (await self._notes(_END)).items():
            if member in members:
                await self.end(name)

    async def end(self, name: str) -> None:
        """End an instance, whose log stays. Idempotent."""
        if await self._instances.find(name) is not None:
            await self._instances.mark(name, {"stopping": f"{time.time():.6f}"})
            await self._instances.kill(name)
        await self._change({}, f"{_END}{name}")
        self._ending.discard(name)

    async def _delete(self, disk: DiskId, member: str) -> None:
        found = await self._volumes.find(volume_of(disk), member)
        if found is None:
            return
        log.warning("deleting disk that was replaced while its member was away disk=%s member=%s", disk, member)
        for name in users_of(found):
            if user := await self._instances.find(name):
                await self._routes.remove(own_of(user).get("ip", ""))
                await self._instances.delete(name)
        await self._volumes.delete(volume_of(disk), member)

    async def _notes(self, prefix: str) -> Mapping[str, str]:
        """Return the member of each noted id."""
        config = (await self._client.get(self._path, project="default"))["config"]
        return {key.removeprefix(prefix): member for key, member in config.items() if key.startswith(prefix)}

    async def _change(self, added: Mapping[str, str], removed: str = "") -> None:
        async with self._client.changing_project:
            project = await self._client.get(self._path, project="default")
            left = {key: value for key, value in project["config"].items() if key != removed}
            # PUT: with a PATCH, Incus takes features that it leaves out as wanted.
            body = {"description": project["description"], "config": {**FEATURES, **left, **added}}
            await self._client.call("PUT", self._path, body, project="default")
