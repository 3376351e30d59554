"""Moves of disks to another member: copied while the app runs, completed while it is stopped.

The copy is marked by the key ``moving`` until it is complete: one with it is no disk yet, and an earlier service's is
removed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from builderd.adapters.engines.incus.disks import COPY, MOVING, HelperOf, volume_of
from builderd.adapters.engines.incus.layers import Layers
from builderd.adapters.engines.incus.volumes import Volumes, own_of
from builderd.domain.errors import EngineUnavailable, NotFound
from builderd.domain.ids import DiskId

log = logging.getLogger(__name__)

#: Seconds that the completion of a move waits for files that callers write just then.
WRITERS_SECONDS = 10.0
_RETRY_SECONDS = 2


class Moves:
    """``place`` chooses the member that a disk is moved to, ``helper`` returns the helper of a member."""

    def __init__(self, volumes: Volumes, layers: Layers, helper: HelperOf, place: Callable[[], Awaitable[str]]) -> None:
        self._volumes = volumes
        self._layers = layers
        self._helper = helper
        self._place = place
        #: Copies that this service makes now: the disk, and the member it is copied to.
        self._staged: dict[DiskId, str] = {}
        #: Disks that no caller may change any more: their copies take their place.
        self._sealed: dict[DiskId, DiskId] = {}
        self._writers: Counter[DiskId] = Counter()
        self._written = asyncio.Condition()

    def has(self, volume: str) -> bool:
        """Return True for the volume of a copy that this service makes now."""
        return any(volume_of(disk) == volume for disk in self._staged)

    async def stage(self, disk: DiskId, target: DiskId, layer_key: str | None) -> str:
        """Copy a disk that may be in use to another member, which gets what an app there needs, and return its name.

        Raises ``NotFound``, ``NoCapacity``.
        """
        found = await self._volumes.find(volume_of(disk))
        if found is None:
            raise NotFound(f"There is no disk {disk}.")
        member = await self._place()
        # The first instance of a member unpacks the image.
        await self._helper(member).open()
        if layer_key:
            await self._layers.volume(layer_key, member)
        own = {**own_of(found), MOVING: disk, COPY: disk}
        self._staged[target] = member
        try:
            await self._volumes.copy(
                volume_of(disk), volume_of(target), int(own["size"]), own, member, found["location"]
            )
        except BaseException:
            self._staged.pop(target)
            await asyncio.shield(self._volumes.delete(volume_of(target), member))
            raise
        return member

    async def complete(self, disk: DiskId, target: DiskId) -> bool:
        """Bring a staged copy up to date; False for one that was not staged. No sandbox may run on the disk.

        From then on no caller changes files of the disk, until it or its copy is deleted.
        """
        member = self._staged.get(target)
        if member is None:
            return False
        await self._seal(disk, target)
        found = await self._volumes.find(volume_of(disk))
        if found is None:
            raise NotFound(f"There is no disk {disk}.")
        own, name = own_of(found), volume_of(target)
        await self._volumes.copy(volume_of(disk), name, int(own["size"]), own, member, found["location"], refresh=True)
        await self._volumes.change(name, member, {**own, MOVING: "", COPY: disk})
        self._staged.pop(target)
        return True

    async def _seal(self, disk: DiskId, target: DiskId) -> None:
        self._sealed[disk] = target
        try:
            async with asyncio.timeout(WRITERS_SECONDS), self._written:
                await self._written.wait_for(lambda: not self._writers[disk])
        except TimeoutError:
            del self._sealed[disk]
            raise EngineUnavailable(
                f"The disk {disk} could not be moved: a file of it is being written.", retry_after=_RETRY_SECONDS
            ) from None

    @asynccontextmanager
    async def writing(self, disk: DiskId) -> AsyncIterator[None]:
        """Keep a disk from being moved while a caller changes its files. Raises ``EngineUnavailable``."""
        if disk in self._sealed:
            raise EngineUnavailable(
                "The builder is being moved to another member of the cluster: try again.", retry_after=_RETRY_SECONDS
            )
        self._writers[disk] += 1
        try:
            yield
        finally:
            self._writers[disk] -= 1
            if not self._writers[disk]:
                del self._writers[disk]
                async with self._written:
                    self._written.notify_all()

    def forget(self, disk: DiskId) -> None:
        """End what concerns a disk that is deleted: the move of it, or the move to it."""
        self._staged.pop(disk, None)
        self._sealed = {source: target for source, target in self._sealed.items() if disk not in (source, target)}
