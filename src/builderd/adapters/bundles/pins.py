"""Pins: bundles that are being stored, which nothing refers to yet and nobody removes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Pins:
    """Counts the pins of each bundle's hash; used by one event loop."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    def __contains__(self, bundle_hash: str) -> bool:
        return bundle_hash in self._held

    @contextmanager
    def pinned(self, bundle_hash: str) -> Iterator[None]:
        """Pin the bundle in the block."""
        self._held[bundle_hash] += 1
        try:
            yield
        finally:
            self._held[bundle_hash] -= 1
            if not self._held[bundle_hash]:
                del self._held[bundle_hash]
