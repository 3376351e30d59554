"""The shelf of finished layers: ``layers/<key>/<n>`` is generation n of a layer, never changed once it has its name.

Generation 1 is what was installed, a later one the same and polished. Sandboxes keep the one that they started on, so
none is taken away while its layer stands; they share their blocks. A layer that a crash of the machine may have
damaged is thrown away, since it can be made again.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Collection
from pathlib import Path

from builderd.adapters.engines.oci.storage.mounts import mounted_roots
from builderd.adapters.engines.oci.storage.store import Store
from builderd.adapters.engines.oci.storage.subvolumes import is_subvolume

_KEY = re.compile(r"[0-9a-f]{64}")
#: Begins the name of a layer that is being taken away.
_ASIDE = "."


class Shelf:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()

    def open(self) -> None:
        """After a start: throw away what may be damaged, and what never became a layer."""
        for layer in self._store.layers.iterdir():
            if _is_aside(layer) or not _generations(layer) or not self._store.settling.adopt(layer):
                self._remove(layer)

    def collect(self, keep: Collection[str], unused_seconds: float) -> list[str]:
        """Take away layers that are not to be kept, that no sandbox sees, and that nobody asked for in so long.

        Answers their keys. Who asked for one gets it: it is set aside under the lock that ``take`` holds, by the time
        of the last ``take``, so nobody who just found it there is left without.
        """
        mounted = mounted_roots()
        layers = [layer for layer in self._store.layers.iterdir() if layer.name not in keep and not _is_aside(layer)]
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
        """The newest one of this layer, 0 when there is none."""
        return max(_generations(self._path(key)), default=0) if _KEY.fullmatch(key) else 0

    def path(self, key: str, generation: int) -> Path:
        return self._path(key) / str(generation)

    def take(self, key: str) -> int:
        """The newest generation, 0 when there is none; from now on it counts as used."""
        with self._lock:
            generation = self.generation(key)
            if generation:
                os.utime(self._path(key))
            return generation

    def put(self, key: str, made: Path) -> None:
        """Take the subvolume as the layer's next generation; it is there whole or not at all."""
        layer = self._path(key)
        layer.mkdir(mode=0o711, exist_ok=True)
        self._store.settling.mark(layer)
        made.rename(layer / str(self.generation(key) + 1))

    def _path(self, key: str) -> Path:
        return self._store.layers / key


def _is_aside(layer: Path) -> bool:
    return layer.name.startswith(_ASIDE)


def _generations(layer: Path) -> list[int]:
    try:
        return [int(path.name) for path in layer.iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return []
