"""Package cache of all builds: written by steps that run no foreign code, copied for the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from builderd.adapters.engines.oci.storage.store import Store
from builderd.adapters.engines.oci.storage.subvolumes import create_subvolume, snapshot
from builderd.linux.threads import to_its_end

CLAIM = "cache"
#: Emptied when it is fuller than this share of its limit, so that one more build fits.
HIGH_WATER = 0.5


class LayerCache:
    """Package cache of a store."""

    def __init__(self, store: Store) -> None:
        self.path = store.root / "cache"
        self._store = store
        self._users = 0
        #: Held while the cache is emptied: builds that start meanwhile wait.
        self._clearing = asyncio.Lock()
        self._size = 0

    def open(self, size_bytes: int) -> None:
        """Create it if missing, with this limit in bytes."""
        self._size = size_bytes
        if not self.path.exists():
            create_subvolume(self.path)
        self._limit()

    def empty(self) -> None:
        """Delete everything in it. Layers that were made from it keep their files."""
        self._store.quota.delete(self.path)
        create_subvolume(self.path)
        self._limit()

    def _limit(self) -> None:
        group = self._store.quota.limit(self.path, self._size)
        self._store.reservations.adopt(CLAIM, self._size, group)

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Keep it from being emptied during a build."""
        async with self._clearing:
            if self._users == 0 and self._is_high():
                await to_its_end(self.empty)
            self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    def _is_high(self) -> bool:
        quota = self._store.quota
        return quota.used(quota.group(self.path)) > self._size * HIGH_WATER

    def copy_to(self, target: Path, size_bytes: int) -> None:
        """Make a throw-away copy: instant, shares all blocks, may take ``size_bytes`` of its own."""
        snapshot(self.path, target)
        self._store.quota.limit_copy(target, size_bytes)
