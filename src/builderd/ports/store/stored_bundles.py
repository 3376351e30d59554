"""Bundles in the store: packed, cut into chunks, for services that share no folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

#: Bytes of a chunk; the last one of a bundle is shorter.
CHUNK_BYTES = 1 << 20


class StoredBundles(Protocol):
    """A bundle's chunks are put one by one, each in a transaction of its own; ``complete`` makes them a bundle."""

    def put_chunk(self, bundle_hash: str, number: int, content: bytes) -> None:
        """Store or replace a chunk; the first one has the number 0."""

    def complete(self, bundle_hash: str, size: int) -> None:
        """Record that all chunks of ``size`` bytes are stored. Idempotent."""

    def size(self, bundle_hash: str) -> int | None:
        """Return the bytes of a complete bundle, else None."""

    def chunk(self, bundle_hash: str, number: int) -> bytes | None:
        """Return a chunk, or None where there is none."""

    def sizes(self) -> Mapping[str, int]:
        """Return the bytes of all complete bundles, by hash."""

    def hashes(self) -> Collection[str]:
        """Return the hashes of all bundles, also of those with some chunks only."""

    def delete(self, bundle_hash: str) -> None:
        """Delete the bundle and its chunks. Idempotent."""
