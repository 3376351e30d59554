"""Bytes of uploads in the store, cut into chunks, for services that share no folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from builderd.domain.ids import TenantId, UploadId

#: Bytes of a chunk; the last one of an upload is shorter. A request of one byte stores a chunk again: larger ones would
#: cost the database more yet.
CHUNK_BYTES = 1 << 18


class StoredUploads(Protocol):
    def put_last(self, upload: UploadId, number: int, content: bytes) -> int:
        """Store or replace a chunk, and delete those after it; without content it, too. The first one has number 0.

        Return by how many bytes the upload has grown.
        """

    def chunk(self, upload: UploadId, number: int) -> bytes | None:
        """Return a chunk, or None where there is none."""

    def size(self, upload: UploadId) -> int:
        """Return the bytes of all chunks of an upload."""

    def of_tenants(self) -> Mapping[TenantId | None, int]:
        """Return the bytes of each tenant's uploads together; None has those without a record."""

    def ids(self) -> Collection[UploadId]:
        """Return the uploads that have chunks."""

    def delete(self, upload: UploadId) -> None:
        """Delete an upload's chunks. Idempotent."""
