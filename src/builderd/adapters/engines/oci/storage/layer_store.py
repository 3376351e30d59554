"""Finished layers of a store, and the cache of downloads.

``layers/<key>/<n>`` is generation n of a layer, never changed once it has its name. Generation 1 is the installed
layer, later ones are clones with compiled bytecode. A sandbox keeps the generation that it started on, so generations
are removed only with their layer; they share blocks. A layer that a crash of the machine may have damaged is removed,
since it can be made again.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from builderd.adapters.engines.oci.storage.backing import mounted_roots
from builderd.adapters.engines.oci.storage.store import Store
from builderd.adapters.engines.oci.storage.subvolumes import create_subvolume, is_subvolume
from builderd.domain.errors import NoCapacity
from builderd.domain.ids import TenantId
from builderd.domain.layers import StoredLayer
from builderd.linux.threads import run_to_completion

_KEY = re.compile(r"[0-9a-f]{64}")
#: Prefix of the name of a layer that is being removed.
_ASIDE = "."
#: Extended attributes of a layer's folder, which only root reads: the tenant that built it, and its size.
_BUILT_BY, _BYTES = "trusted.builderd.tenant", "trusted.builderd.bytes"


class LayerStore:
    """Finished layers of one store. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()

    def open(self) -> None:
        """Remove layers that a crash may have damaged and leftovers of unfinished ones. Call it once after a start."""
        for layer in self._store.layers.iterdir():
            if _is_aside(layer) or not _generations(layer) or not self._store.deferred_sync.adopt(layer):
                self._remove(layer)

    def collect(self, keep: Collection[str], unused_seconds: float) -> list[str]:
        """Remove layers that are not in ``keep``, not mounted, and unused for ``unused_seconds``; return their keys.

        A layer is renamed away under the lock of ``take``, judged by the time of the last ``take``: a caller that has
        just taken one keeps it.
        """
        layers = (layer for layer in self._store.layers.iterdir() if layer.name not in keep and not _is_aside(layer))
        return self._collect(list(layers), unused_seconds)

    def collect_some(self, keys: Collection[str], unused_seconds: float) -> list[str]:
        """Remove these layers as ``collect`` does, without a look at the others; return the removed keys."""
        layers = (self._path(key) for key in keys if _KEY.fullmatch(key))
        return self._collect([layer for layer in layers if layer.exists()], unused_seconds)

    def _collect(self, layers: Collection[Path], unused_seconds: float) -> list[str]:
        mounted = mounted_roots()
        aside = {layer.name: self._set_aside(layer, unused_seconds, mounted) for layer in layers}
        for path in aside.values():
            if path is not None:
                self._remove(path)
        return [key for key, path in aside.items() if path is not None]

    def _set_aside(self, layer: Path, unused_seconds: float, mounted: Collection[str]) -> Path | None:
        with self._lock:
            if time.time() - layer.stat().st_mtime < unused_seconds:
                return None
            if any(f"/layers/{layer.name}/" in root for root in mounted):
                return None
            return layer.rename(layer.with_name(f"{_ASIDE}{layer.name}"))

    def _remove(self, layer: Path) -> None:
        for path in layer.iterdir():
            if is_subvolume(path):
                self._store.quota.delete(path)
            else:
                path.unlink()
        layer.rmdir()

    def generation(self, key: str) -> int:
        """Return the newest generation of this layer, 0 when there is none."""
        return max(_generations(self._path(key)), default=0) if _KEY.fullmatch(key) else 0

    def path(self, key: str, generation: int) -> Path:
        return self._path(key) / str(generation)

    def take(self, key: str) -> int:
        """Return the newest generation, 0 when there is none, and record the use."""
        with self._lock:
            generation = self.generation(key)
            if generation:
                os.utime(self._path(key))
            return generation

    def keys(self) -> list[str]:
        """Return the keys of all layers."""
        return [layer.name for layer in self._store.layers.iterdir() if not _is_aside(layer)]

    def describe(self, key: str) -> StoredLayer | None:
        """Return the layer's size and who built it; None when it is not complete or was removed meanwhile."""
        layer = self._path(key)
        try:
            names = os.listxattr(layer)
            size = int(os.getxattr(layer, _BYTES))
            tenant = TenantId(os.getxattr(layer, _BUILT_BY).decode()) if _BUILT_BY in names else None
        except FileNotFoundError:
            return None
        return StoredLayer(size, tenant) if self.generation(key) else None

    def put(self, key: str, made: Path, size_bytes: int, tenant: TenantId | None = None) -> None:
        """Add the subvolume as the layer's next generation, atomically, and record who built the first one."""
        layer = self._path(key)
        layer.mkdir(mode=0o711, exist_ok=True)
        self._store.deferred_sync.mark(layer)
        os.setxattr(layer, _BYTES, str(size_bytes).encode())
        if tenant is not None:
            os.setxattr(layer, _BUILT_BY, tenant.encode())
        made.rename(layer / str(self.generation(key) + 1))

    def _path(self, key: str) -> Path:
        return self._store.layers / key


def lacks_bytecode(layer: Path) -> bool:
    """Return True for the folder of a first generation that contains Python packages."""
    return layer.name == "1" and (layer / "venv").is_dir()


def _is_aside(layer: Path) -> bool:
    return layer.name.startswith(_ASIDE)


def _generations(layer: Path) -> list[int]:
    try:
        return [int(path.name) for path in layer.iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return []


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
        #: Locked while a build gets its cache: the others wait while one is emptied.
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
