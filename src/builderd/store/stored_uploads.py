"""Bytes of uploads in SQL: one row a chunk."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from builderd.domain.ids import TenantId, UploadId
from builderd.store.tables import upload_chunks, uploads

#: Bytes of a chunk; the last one of an upload is shorter. A request of one byte stores a chunk again: larger ones would
#: cost the database more yet.
CHUNK_BYTES = 1 << 18


_chunk = upload_chunks.c
_of_upload = _chunk.upload_id == bindparam("upload")

_INSERT = insert(upload_chunks)
_CHUNK = select(_chunk.content).where(_of_upload, _chunk.number == bindparam("at"))
_BYTES = func.coalesce(func.sum(_chunk.size), 0)
_SIZE = select(_BYTES).where(_of_upload)
_SIZE_FROM = _SIZE.where(_chunk.number >= bindparam("at"))
_OF_TENANTS = (
    select(uploads.c.tenant_id, _BYTES)
    .select_from(upload_chunks.outerjoin(uploads, uploads.c.id == _chunk.upload_id))
    .group_by(uploads.c.tenant_id)
)
_IDS = select(_chunk.upload_id).where(_chunk.number == 0)
_DELETE = delete(upload_chunks).where(_of_upload)
_DELETE_FROM = _DELETE.where(_chunk.number >= bindparam("at"))


class StoredUploads:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put_last(self, upload: UploadId, number: int, content: bytes) -> int:
        """Store or replace a chunk, and delete those after it; without content it, too. The first one has number 0.

        Return by how many bytes the upload has grown.
        """
        place = {"upload": upload, "at": number}
        replaced = int(self._connection.execute(_SIZE_FROM, place).scalar_one())
        if replaced:
            self._connection.execute(_DELETE_FROM, place)
        if content:
            values = {"upload_id": upload, "number": number, "size": len(content), "content": content}
            self._connection.execute(_INSERT, values)
        return len(content) - replaced

    def chunk(self, upload: UploadId, number: int) -> bytes | None:
        """Return a chunk, or None where there is none."""
        return self._connection.execute(_CHUNK, {"upload": upload, "at": number}).scalar()

    def size(self, upload: UploadId) -> int:
        """Return the bytes of all chunks of an upload."""
        return int(self._connection.execute(_SIZE, {"upload": upload}).scalar_one())

    def of_tenants(self) -> Mapping[TenantId | None, int]:
        """Return the bytes of each tenant's uploads together; None has those without a record."""
        return {tenant and TenantId(tenant): int(size) for tenant, size in self._connection.execute(_OF_TENANTS)}

    def ids(self) -> Collection[UploadId]:
        """Return the uploads that have chunks."""
        return frozenset(map(UploadId, self._connection.execute(_IDS).scalars()))

    def delete(self, upload: UploadId) -> None:
        """Delete an upload's chunks. Idempotent."""
        self._connection.execute(_DELETE, {"upload": upload})
