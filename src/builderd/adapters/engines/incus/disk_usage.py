"""Used bytes of the disks of many apps, which Incus runs programs of btrfs for: each is asked for now and then."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection

from builderd.domain.errors import BuilderdError
from builderd.domain.ids import SandboxId
from builderd.domain.sandboxes import SandboxUsage

#: Age of a reading at most. Each disk is read again at a time of its own between half of it and all.
MAX_AGE_SECONDS = 300.0
#: The same of a disk without bytes: btrfs counts those of a new volume when it writes them, within 30 s.
EMPTY_SECONDS = 30.0
#: Apps that are asked for at once.
AT_ONCE = 8


class DiskUsage:
    """``usage`` reads one sandbox, by the state of its instance.

    The volume's own state would cost less, but Incus 6.0 answers 404 for a volume of another member.
    """

    def __init__(self, usage: Callable[[SandboxId], Awaitable[SandboxUsage | None]]) -> None:
        self._usage = usage
        #: Bytes of each disk, or the error of its first reading; and when it is due again (``time.monotonic``).
        self._known: dict[SandboxId, tuple[int | BuilderdError, float]] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def read(self, sandboxes: Collection[SandboxId]) -> None:
        """Read the disks of those that are not known, or have not been read for long."""
        now = time.monotonic()
        # Nobody has asked for the others for long.
        self._known = {one: known for one, known in self._known.items() if now < known[1] + MAX_AGE_SECONDS}
        due = [one for one in sandboxes if one not in self._known or self._known[one][1] <= now]
        await asyncio.gather(*map(self._read, due))

    async def _read(self, sandbox: SandboxId) -> None:
        try:
            async with self._turns:
                usage = await self._usage(sandbox)
        except BuilderdError as error:
            if not isinstance(self._known.get(sandbox, (error,))[0], int):
                self._known[sandbox] = error, time.monotonic()
        else:
            used = usage.disk_bytes if usage else 0
            kept = MAX_AGE_SECONDS * random.uniform(0.5, 1) if used else EMPTY_SECONDS  # noqa: S311 (no secret)
            self._known[sandbox] = used or self._last(sandbox), time.monotonic() + kept

    def _last(self, sandbox: SandboxId) -> int:
        """Return the bytes of the last reading that there is, 0 without one."""
        used, _ = self._known.get(sandbox, (0, 0.0))
        return used if isinstance(used, int) else 0

    def of(self, sandbox: SandboxId) -> int:
        """Return the bytes as last read. Raises the error of a disk that could not be read yet."""
        used, _ = self._known[sandbox]
        if isinstance(used, BuilderdError):
            raise used
        return used
