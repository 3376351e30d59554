"""Used bytes of many disks. Incus runs a program of btrfs for each volume, so that each is asked for now and then."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping

from builderd.adapters.engines.incus.disks import volume_of
from builderd.adapters.engines.incus.volumes import Volumes
from builderd.domain.errors import BuilderdError
from builderd.domain.ids import DiskId

#: Age of a reading at most. Each disk is read again at a time of its own between half of it and all.
MAX_AGE_SECONDS = 300.0
#: Volumes that are asked for at once.
AT_ONCE = 8


class DiskUsage:
    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes
        #: Bytes of each disk, or the error of its first reading; and when it is due again (``time.monotonic``).
        self._known: dict[DiskId, tuple[int | BuilderdError, float]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def read(self, members: Mapping[DiskId, str]) -> None:
        """Read those of these disks (disk → its member) that are not known, or have not been read for long."""
        now = time.monotonic()
        # Nobody has asked for the others for long.
        self._known = {disk: one for disk, one in self._known.items() if now < one[1] + MAX_AGE_SECONDS}
        due = [disk for disk in members if disk not in self._known or self._known[disk][1] <= now]
        await asyncio.gather(*(self._read(disk, members[disk]) for disk in due))

    async def _read(self, disk: DiskId, member: str) -> None:
        try:
            async with self._turns:
                used = await self._volumes.used_bytes(volume_of(disk), member)
        except BuilderdError as error:
            if not isinstance(self._known.get(disk, (error,))[0], int):
                self._known[disk] = error, time.monotonic()
        else:
            # btrfs counts a volume's own bytes when it writes them, and none is empty then: 0 is not kept for long.
            again = MAX_AGE_SECONDS * random.uniform(0.5, 1) if used else 0.0  # noqa: S311 (no secret)
            self._known[disk] = used or self._last(disk), time.monotonic() + again

    def _last(self, disk: DiskId) -> int:
        """Return the bytes of the last reading that there is, 0 without one."""
        used, _ = self._known.get(disk, (0, 0.0))
        return used if isinstance(used, int) else 0

    def of(self, disk: DiskId) -> int:
        """Return the bytes as last read. Raises the error of a disk that could not be read yet."""
        used, _ = self._known[disk]
        if isinstance(used, BuilderdError):
            raise used
        return used
