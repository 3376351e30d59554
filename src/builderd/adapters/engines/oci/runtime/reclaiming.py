"""Reclaim of frozen sandboxes' memory into compressed memory (zram), when the machine swaps to it.

In the background: it takes 30 to 90 ms, and a sandbox that is thawed meanwhile need not wait for it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from builderd.adapters.engines.oci.runtime.cgroups import Cgroups

_SWAPS = Path("/proc/swaps")
#: A later round takes pages that were used too recently for the first one.
_ROUNDS = 3


class Reclaiming:
    """One task for each sandbox whose memory is being moved out."""

    def __init__(self, cgroups: Cgroups) -> None:
        self._cgroups = cgroups
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str) -> None:
        """Start moving a sandbox's memory out if there is zram; returns at once."""
        if swaps_to_zram():
            task = self._tasks[name] = asyncio.get_running_loop().create_task(self._reclaim(name))
            task.add_done_callback(lambda done: self._forget(name, done))

    def end(self, name: str) -> None:
        """Stop moving a sandbox's memory out."""
        if task := self._tasks.pop(name, None):
            task.cancel()
        self._cgroups.end_reclaim(name)

    def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def _reclaim(self, name: str) -> None:
        for _ in range(_ROUNDS):
            await asyncio.to_thread(self._cgroups.reclaim, name)

    def _forget(self, name: str, done: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is done:
            del self._tasks[name]


def swaps_to_zram() -> bool:
    """Return True when this machine swaps to zram now. A kernel may lack swap altogether."""
    return _SWAPS.exists() and has_zram(_SWAPS.read_text())


def has_zram(swaps: str) -> bool:
    """Return True when ``/proc/swaps`` lists a zram device. From a disk, thawing would be slow."""
    return any(line.startswith("/dev/zram") for line in swaps.splitlines())
