"""Bundles in SQL: one row a chunk, and one a complete bundle."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import bindparam, delete, insert, select, update

from builderd.database.repository import Queries
from builderd.database.tables import bundle_chunks, stored_bundles

#: Bytes of a chunk; the last one of a bundle is shorter.
CHUNK_BYTES = 1 << 20


_bundle = stored_bundles.c
_chunk = bundle_chunks.c
_of_number = (_chunk.hash == bindparam("bundle"), _chunk.number == bindparam("at"))

_SIZE = select(_bundle.size).where(_bundle.hash == bindparam("bundle"))
_CHUNK = select(_chunk.content).where(*_of_number)
# A bundle that was cut off has its first chunk, but no row.
_HASHES = select(_bundle.hash).union(select(_chunk.hash).where(_chunk.number == 0))
_DELETE = [
    delete(stored_bundles).where(_bundle.hash == bindparam("bundle")),
    delete(bundle_chunks).where(_chunk.hash == bindparam("bundle")),
]


class StoredBundles(Queries):
    """A bundle's chunks are put one by one, each in a transaction of its own; ``complete`` makes them a bundle."""

    def put_chunk(self, bundle_hash: str, number: int, content: bytes) -> None:
        """Store or replace a chunk; the first one has the number 0."""
        values = {"bundle": bundle_hash, "at": number, "content": content}
        if not self._change(update(bundle_chunks).where(*_of_number), **values):
            self._connection.execute(insert(bundle_chunks), {"hash": bundle_hash, "number": number, "content": content})

    def complete(self, bundle_hash: str, size: int) -> None:
        """Record that all chunks of ``size`` bytes are stored. Idempotent."""
        if self.size(bundle_hash) is None:
            self._connection.execute(insert(stored_bundles), {"hash": bundle_hash, "size": size})

    def size(self, bundle_hash: str) -> int | None:
        """Return the bytes of a complete bundle, else None."""
        found: int | None = self._connection.scalar(_SIZE, {"bundle": bundle_hash})
        return found

    def chunk(self, bundle_hash: str, number: int) -> bytes | None:
        """Return a chunk, or None where there is none."""
        found: bytes | None = self._connection.scalar(_CHUNK, {"bundle": bundle_hash, "at": number})
        return found

    def sizes(self) -> Mapping[str, int]:
        """Return the bytes of all complete bundles, by hash."""
        return {row.hash: row.size for row in self._connection.execute(select(_bundle.hash, _bundle.size))}

    def hashes(self) -> Collection[str]:
        """Return the hashes of all bundles, also of those with some chunks only."""
        return frozenset(self._connection.scalars(_HASHES).all())

    def delete(self, bundle_hash: str) -> None:
        """Delete the bundle and its chunks. Idempotent."""
        for statement in _DELETE:
            self._connection.execute(statement, {"bundle": bundle_hash})
