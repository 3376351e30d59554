"""The shelf of finished layers: ``layers/<key>/<n>`` is generation n of a layer, never changed once it has its name.

Generation 1 is what was installed, a later one the same and polished. Sandboxes keep the one that they started on, so
none is taken away while its layer stands; they share their blocks. A layer that a crash of the machine may have
damaged is thrown away, since it can be made again.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from builderd.adapters.engines.oci.mounts import mounted_roots
from builderd.adapters.engines.oci.store import Store
from builderd.adapters.engines.oci.subvolumes import is_subvolume

_KEY = re.compile(r"[0-9a-f]{64}")


class Shelf:
    def __init__(self, store: Store) -> None:
        self._store = store

    def open(self) -> None:
        """After a start: throw away what may be damaged, and what never became a layer."""
        for layer in self._store.layers.iterdir():
            if not _generations(layer) or not self._store.settling.adopt(layer):
                self._remove(layer)

    def collect(self, unused_seconds: float) -> None:
        """Take away layers that no sandbox sees and none was started on for so long. They can be made again."""
        mounted = mounted_roots()
        for layer in self._store.layers.iterdir():
            recent = time.time() - layer.stat().st_mtime < unused_seconds
            if not recent and not any(f"/layers/{layer.name}/" in root for root in mounted):
                self._remove(layer)

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

    def note_use(self, key: str) -> None:
        """Keep it from being collected."""
        os.utime(self._path(key))

    def put(self, key: str, made: Path) -> None:
        """Take the subvolume as the layer's next generation; it is there whole or not at all."""
        layer = self._path(key)
        layer.mkdir(mode=0o711, exist_ok=True)
        self._store.settling.mark(layer)
        made.rename(layer / str(self.generation(key) + 1))

    def _path(self, key: str) -> Path:
        return self._store.layers / key


def _generations(layer: Path) -> list[int]:
    try:
        return [int(path.name) for path in layer.iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return []
