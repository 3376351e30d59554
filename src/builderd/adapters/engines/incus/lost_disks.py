"""Disks on members that are away: deleted when their member returns."""

from __future__ import annotations

import logging
from collections.abc import Collection

from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.deferred import Deferred
from builderd.adapters.engines.incus.disks import volume_of
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.members import Members
from builderd.adapters.engines.incus.routes import Routes
from builderd.adapters.engines.incus.volumes import Volumes, own_of, users_of
from builderd.domain.ids import DiskId

log = logging.getLogger(__name__)


class LostDisks:
    def __init__(
        self, client: IncusClient, members: Members, volumes: Volumes, instances: Instances, routes: Routes
    ) -> None:
        self._deferred = Deferred(client, "delete")
        self._members = members
        self._volumes = volumes
        self._instances = instances
        self._routes = routes

    async def delete_later(self, disk: DiskId) -> bool:
        """Have a disk deleted when its member returns; False where it lies on a member that answers, or nowhere."""
        away = self._members.away_names()
        places = await self._volumes.places(volume_of(disk)) if away else []
        if not places or not away.issuperset(places):
            return False
        log.warning("disk is deleted when its member returns disk=%s member=%s", disk, places[0])
        await self._deferred.note(disk, places[0])
        return True

    async def delete_on(self, members: Collection[str]) -> None:
        """Delete what was to be deleted on these members, which answer again, with the instances that have it."""
        due = {disk: member for disk, member in (await self._deferred.all()).items() if member in members}
        for disk, member in due.items():
            await self._delete(DiskId(disk), member)
        await self._deferred.remove(due)

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
