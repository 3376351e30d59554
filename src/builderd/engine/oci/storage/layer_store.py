"""Finished layers of a store, and the cache of downloads.

``layers/<key>/1`` is a layer's subvolume, never changed once it has its name. A layer that a crash of the machine may
have damaged is removed, since it can be made again.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from builderd.core.ids import TenantId
from builderd.dependencies.model import StoredLayer
from builderd.engine.oci.storage.backing import mounted_roots
from builderd.engine.oci.storage.store import TENANT, Store
from builderd.engine.oci.storage.subvolumes import create_subvolume, is_subvolume
from builderd.linux.threads import run_to_completion

_KEY = re.compile(r"[0-9a-f]{64}")
#: Prefix of the name of a layer that is being removed.
_ASIDE = "."
#: Extended attributes of a layer's folder, which only root reads: the tenant that built it, and its size.
_BUILT_BY, _BYTES = TENANT, "trusted.builderd.bytes"


class LayerStore:
    """Finished layers of one store. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()

    def open(self) -> None:
        """Remove layers that a crash may have damaged and leftovers of unfinished ones. Call it once after a start."""
        for layer in self._store.layers.iterdir():
            if _is_aside(layer) or not _content(layer).exists() or not self._store.deferred_sync.adopt(layer):
                self._remove(layer)

    def collect(self, keep: Collection[str], unused_seconds: float, only: Collection[str] | None = None) -> list[str]:
        """Remove layers that are not in ``keep``, not mounted, and unused for ``unused_seconds``; return their keys.

        A layer is renamed away under the lock of ``take``, judged by the time of the last ``take``: a caller that has
        just taken one keeps it.
        """
        mounted = mounted_roots()
        keys = [key for key in self.keys() if key not in keep and (only is None or key in only)]
        aside = {key: self._set_aside(self._path(key), unused_seconds, mounted) for key in keys}
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

    def take(self, key: str) -> Path | None:
        """Return the layer's folder and record the use; None when there is none."""
        if not _KEY.fullmatch(key):
            return None
        with self._lock:
            content = _content(self._path(key))
            if not content.exists():
                return None
            os.utime(content.parent)
            return content

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
        return StoredLayer(size, tenant) if _content(layer).exists() else None

    def put(self, key: str, made: Path, size_bytes: int, tenant: TenantId | None = None) -> None:
        """Add the subvolume as the layer, atomically, and record who built it."""
        layer = self._path(key)
        layer.mkdir(mode=0o711, exist_ok=True)
        self._store.deferred_sync.mark(layer)
        os.setxattr(layer, _BYTES, str(size_bytes).encode())
        if tenant is not None:
            os.setxattr(layer, _BUILT_BY, tenant.encode())
        made.rename(_content(layer))

    def _path(self, key: str) -> Path:
        return self._store.layers / key


def _is_aside(layer: Path) -> bool:
    return layer.name.startswith(_ASIDE)


def _content(layer: Path) -> Path:
    return layer / "1"


#: The cache is emptied when it is fuller than this, so that one more build surely fits.
HIGH_WATER = 0.5


class LayerCache:
    """Cache of downloads that builds share. ``path`` is also the name of its claim."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.path = store.root / "cache"
        self._size = 0
        self._users = 0
        #: Locked while a build gets its cache: the others wait while it is emptied.
        self._entering = asyncio.Lock()

    def open(self, size_bytes: int) -> None:
        """Adopt the cache, or make it. ``size_bytes``: its limit."""
        self._size = size_bytes
        if not self.path.exists():
            create_subvolume(self.path)
        self._limit()

    def empty(self) -> None:
        """Forget everything in it. Layers that were made from it keep their files."""
        self._store.quota.delete(self.path)
        create_subvolume(self.path)
        self._limit()

    def _limit(self) -> None:
        group = self._store.quota.limit(self.path, self._size)
        self._store.reservations.adopt(self.path.name, self._size, group, self.path.name)

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[Path | None]:
        """Yield the cache for a build, to which it stays until the build leaves it.

        Yield None for one that is full while other builds use it, so that a build without end blocks none of others.
        """
        quota = self._store.quota
        async with self._entering:
            is_high = quota.used(quota.group(self.path)) > self._size * HIGH_WATER
            if is_high and not self._users:
                await run_to_completion(self.empty)
            path = None if is_high and self._users else self.path
            self._users += path is not None
        try:
            yield path
        finally:
            self._users -= path is not None
