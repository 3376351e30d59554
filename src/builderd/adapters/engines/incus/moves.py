"""Moves of disks from members that are emptied: copied to another one by Incus, then deleted where they were.

The copy has the disk's name and the key ``moved_from``, the member of its original. While that exists the copy may be
incomplete, and the original is the disk; ``Disks.find`` chooses. The original is deleted once the copy is complete.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager

from builderd.adapters.engines.incus.client import Json
from builderd.adapters.engines.incus.disks import MOVED_FROM, Disks, volume_of
from builderd.adapters.engines.incus.volumes import Volumes, own_of
from builderd.domain.errors import BuilderdError, EngineUnavailable
from builderd.domain.ids import DiskId

log = logging.getLogger(__name__)

#: After a disk could not be moved: its app starts where it was, and is not interrupted again for so long.
RETRY_SECONDS = 300.0


class Moves:
    """``place`` chooses the member that a disk is moved to, ``leaving`` returns those that are to be emptied."""

    def __init__(
        self,
        volumes: Volumes,
        disks: Disks,
        place: Callable[[], Awaitable[str]],
        leaving: Callable[[], Collection[str]],
    ) -> None:
        self._volumes = volumes
        self._disks = disks
        self._place = place
        self._leaving = leaving
        self._moving: set[DiskId] = set()
        self._writers: Counter[DiskId] = Counter()
        #: When a disk that could not be moved is tried again, by the monotonic clock.
        self._retry_at: dict[DiskId, float] = {}

    def is_due(self, disk: DiskId, member: str) -> bool:
        """Return True if the disk is to leave its member before an app starts on it."""
        return member in self._leaving() and time.monotonic() >= self._retry_at.get(disk, 0.0)

    def has(self, volume: str) -> bool:
        """Return True for the volume of a disk that is being moved."""
        return any(volume_of(disk) == volume for disk in self._moving)

    async def move(self, disk: DiskId, found: Json) -> str:
        """Move a disk, as it was found, that no sandbox uses. Return its member: the same one where that failed."""
        member = str(found.get("location") or "")
        if self._writers[disk]:
            log.warning("disk not moved, a file is being written disk=%s member=%s", disk, member)
            self._retry_at[disk] = time.monotonic() + RETRY_SECONDS
            return member
        self._moving.add(disk)
        try:
            return await self._carry_out(disk, found, member)
        except Exception as error:
            log.warning(
                "disk not moved, retrying later disk=%s member=%s error=%s",
                *(disk, member, error),
                exc_info=not isinstance(error, BuilderdError),
            )
            self._retry_at[disk] = time.monotonic() + RETRY_SECONDS
            return member
        finally:
            self._moving.discard(disk)

    async def _carry_out(self, disk: DiskId, found: Json, member: str) -> str:
        name, own = volume_of(disk), own_of(found)
        for place in await self._volumes.places(name):
            if place != member:  # a copy of a move that failed
                await self._volumes.delete(name, place)
        target = await self._place()
        try:
            await self._volumes.copy(name, name, int(own["size"]), own | {MOVED_FROM: member}, target, member)
        except BaseException:
            await asyncio.shield(self._volumes.delete(name, target))
            raise
        await self._disks.delete(disk, found)
        await self._volumes.change(name, target, {MOVED_FROM: ""})
        log.info("disk moved disk=%s member=%s target=%s", disk, member, target)
        return target

    @contextmanager
    def writing(self, disk: DiskId) -> Iterator[None]:
        """Keep a disk from being moved while a caller changes its files. Raises ``EngineUnavailable``."""
        if disk in self._moving:
            raise EngineUnavailable(
                "The builder is being moved to another member of the cluster: try again.", retry_after=5
            )
        self._writers[disk] += 1
        try:
            yield
        finally:
            self._writers[disk] -= 1
            if not self._writers[disk]:
                del self._writers[disk]
