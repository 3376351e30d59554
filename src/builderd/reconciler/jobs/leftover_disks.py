"""Disks of a cluster that no record names: removed once they were so for an hour, if they hold nothing of their own.

A service that is killed while it moves a builder leaves the copy; what it had begun on Incus may end after the next
service has cleaned up. Such a disk is a copy, or was never filled. Any other one stays: after a restore of an older
database, disks of builders that it does not know are without a record, too.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import datetime, timedelta

from builderd.domain.errors import BuilderdError
from builderd.domain.ids import DiskId
from builderd.ports.store import UnitOfWork
from builderd.services.application import Application

log = logging.getLogger(__name__)

#: For how long a complete disk must have been without a record: a copy that is being made gets one after its end.
UNNAMED_FOR = timedelta(hours=1)


class LeftoverDisks:
    """Remembers since when each disk was seen without a record; after a restart of the service the time runs anew."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._since: dict[DiskId, datetime] = {}
        #: Disks that stay, reported once.
        self._told: set[DiskId] = set()

    async def check(self) -> None:
        """Look at all disks, and remove what was left. Those of members that are away wait for their return."""
        if not self._app.engine.readiness().ready:
            return
        # In this order: a disk is recorded before it is made.
        held = frozenset(await self._app.engine.disk_members())
        named = await self._app.store.read(lambda uow: uow.named_disks.all()) if held else ()
        now = self._app.clock.now()
        self._since = {disk: self._since.get(disk, now) for disk in held.difference(named)}
        self._told.intersection_update(self._since)
        for disk, since in tuple(self._since.items()):
            if now - since >= UNNAMED_FOR:
                try:
                    await self._remove(disk, held)
                except BuilderdError as error:  # another one is looked at all the same
                    log.info("disk without a record not removed, retrying later disk=%s error=%s", disk, error)

    async def _remove(self, disk: DiskId, held: Collection[DiskId]) -> None:
        found = await self._app.engine.disk(disk)
        if found is None:  # a copy that is being made: its hour begins when it is complete
            self._since[disk] = self._app.clock.now()
            return
        if found.copy_of is None and not found.is_blank:
            self._tell(disk, "it has files of its own")
            return
        # A write: a service that has lost its database to another one ends here.
        if not await self._app.store.write(lambda uow: _is_left(uow, disk, found.copy_of, held)):
            self._tell(disk, "its original is gone, and a builder needs it")
            return
        log.warning("removing disk without a record disk=%s copy_of=%s", disk, found.copy_of)
        await self._app.engine.delete_disk(disk)

    def _tell(self, disk: DiskId, why: str) -> None:
        if disk not in self._told:
            self._told.add(disk)
            log.warning("disk without a record stays disk=%s reason=%s", disk, why)


def _is_left(uow: UnitOfWork, disk: DiskId, copy_of: DiskId | None, held: Collection[DiskId]) -> bool:
    """Return True unless a record names the disk, or names the original of a copy that is all that is left of it."""
    named = uow.named_disks.all()
    return disk not in named and (copy_of is None or copy_of in held or copy_of not in named)
