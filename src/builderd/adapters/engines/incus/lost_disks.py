"""Disks on members that are away: given up for now, and deleted when their member returns.

What is to be deleted stands in the project's configuration (``user.builderd.delete.<disk>``, its member): the
database of the cluster keeps it over restarts of this service.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.cluster import FEATURES
from builderd.adapters.engines.incus.disks import volume_of
from builderd.adapters.engines.incus.instance import OWN
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.members import Members
from builderd.adapters.engines.incus.routes import Routes
from builderd.adapters.engines.incus.volumes import Volumes, own_of, users_of
from builderd.domain.ids import DiskId

log = logging.getLogger(__name__)

_DELETE = f"{OWN}delete."


class LostDisks:
    def __init__(
        self, client: IncusClient, members: Members, volumes: Volumes, instances: Instances, routes: Routes
    ) -> None:
        self._client = client
        self._members = members
        self._volumes = volumes
        self._instances = instances
        self._routes = routes
        #: Held while the project's configuration is read and written.
        self._noting = asyncio.Lock()
        self._path = f"/projects/{client.project}"

    async def delete_later(self, disk: DiskId) -> bool:
        """Have a disk deleted when its member returns; False where it lies on a member that answers, or nowhere."""
        away = self._members.away_names()
        places = await self._volumes.places(volume_of(disk)) if away else []
        if not places or not away.issuperset(places):
            return False
        log.warning("disk is deleted when its member returns disk=%s member=%s", disk, places[0])
        await self._note({f"{_DELETE}{disk}": places[0]}, ())
        return True

    async def _note(self, added: Mapping[str, str], removed: Collection[str]) -> None:
        async with self._noting:
            project = await self._client.get(self._path, project="default")
            left = {key: value for key, value in project["config"].items() if key not in removed}
            # PUT: with a PATCH, Incus takes features that it leaves out as wanted.
            body = {"description": project["description"], "config": {**FEATURES, **left, **added}}
            await self._client.call("PUT", self._path, body, project="default")

    async def delete_on(self, members: Collection[str]) -> None:
        """Delete what was to be deleted on these members, which answer again, with the instances that have it."""
        project = await self._client.get(self._path, project="default")
        due = {
            key: member for key, member in project["config"].items() if key.startswith(_DELETE) and member in members
        }
        for key, member in due.items():
            await self._delete(DiskId(key.removeprefix(_DELETE)), member)
        if due:
            await self._note({}, due)

    async def _delete(self, disk: DiskId, member: str) -> None:
        found = await self._volumes.find(volume_of(disk), member)
        if found is None:
            return
        log.warning("deleting disk that was replaced while its member was away disk=%s member=%s", disk, member)
        for name in users_of(found):
            if user := await self._instances.find(name):
                await self._routes.remove(own_of(user).get("ip", ""))
                # A member that was cut off runs it still.
                await self._instances.delete(name)
        await self._volumes.delete(volume_of(disk), member)
