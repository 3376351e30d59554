"""The cache of downloads that all tenants share: for steps that run no foreign code alone.

A cache that is over its high-water mark while builds write to it cannot be emptied. Builds that come get another one
then, and the full one is removed with its last build: one tenant's downloads do not stop the builds of others.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from builderd.adapters.engines.oci.storage.store import Store
from builderd.adapters.engines.oci.storage.subvolumes import create_subvolume
from builderd.domain.errors import NoCapacity
from builderd.linux.threads import run_to_completion

#: Folders of the store and names of claims: at most two caches at a time, one of them only for builds that began in it.
NAMES = ("cache", "cache2")
#: Emptied when it is fuller than this, so that one more build surely fits.
HIGH_WATER = 0.5


class LayerCache:
    """``path`` is the cache that new builds get."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._paths = tuple(store.root / name for name in NAMES)
        self.path = self._paths[0]
        self._size = 0
        self._users: Counter[Path] = Counter()
        #: Held while a build gets its cache: the others wait while one is emptied.
        self._entering = asyncio.Lock()
        self._left = asyncio.Event()

    def open(self, size_bytes: int) -> None:
        """Adopt the cache, or make it; remove the second one that an earlier service left. ``size_bytes``: limit."""
        self._size = size_bytes
        first, second = self._paths
        if first.exists() and second.exists():
            self._remove(second)
        self.path = second if second.exists() else first
        if not self.path.exists():
            create_subvolume(self.path)
        self._limit(self.path)

    def empty(self) -> None:
        """Forget everything in it. Layers that were made from it keep their files."""
        self._store.quota.delete(self.path)
        create_subvolume(self.path)
        self._limit(self.path)

    def _limit(self, path: Path) -> None:
        group = self._store.quota.limit(path, self._size)
        self._store.reservations.adopt(path.name, self._size, group)

    def _remove(self, path: Path) -> None:
        self._store.quota.delete(path)
        self._store.reservations.release(path.name)

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[Path]:
        """Yield the cache for a build; it is neither emptied nor removed until the build leaves it."""
        async with self._entering:
            while self._is_high() and not await self._renew():
                self._left.clear()
                await self._left.wait()
            path = self.path
            self._users[path] += 1
        try:
            yield path
        finally:
            self._users[path] -= 1
            if path != self.path and not self._users[path]:
                await run_to_completion(self._remove, path)
            self._left.set()

    async def _renew(self) -> bool:
        """Provide an empty cache. Return False if builds are in both, or the store has no room for a second one."""
        if not self._users[self.path]:
            await run_to_completion(self.empty)
            return True
        return await run_to_completion(self._begin_other)

    def _begin_other(self) -> bool:
        (other,) = set(self._paths) - {self.path}
        if other.exists():
            return False
        try:
            self._store.reservations.claim(other.name, self._size)
        except NoCapacity:
            return False
        try:
            create_subvolume(other)
            self._limit(other)
        except BaseException:
            self._store.reservations.release(other.name)
            raise
        self.path = other
        return True

    def _is_high(self) -> bool:
        quota = self._store.quota
        return quota.used(quota.group(self.path)) > self._size * HIGH_WATER
