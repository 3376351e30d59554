"""Uploads in SQL, and their bytes: one row a chunk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import bindparam, delete, func, insert, select

from builderd.core.ids import TenantId, UploadId
from builderd.database.repository import Queries, Repository
from builderd.database.tables import upload_chunks, uploads
from builderd.files.model import Upload

_by_id = uploads.c.id == bindparam("upload")

_OF_TENANT = select(uploads).where(uploads.c.tenant_id == bindparam("tenant")).order_by(uploads.c.created_at)
_LIVE = select(uploads.c.id).where(uploads.c.expires_at > bindparam("now"))
_EXPIRED = select(uploads.c.id).where(uploads.c.expires_at <= bindparam("now"))


class Uploads(Repository[Upload]):
    _table, _record = uploads, Upload

    def get(self, upload: UploadId) -> Upload | None:
        return self._first(select(uploads).where(_by_id), upload=upload)

    def update(self, value: Upload) -> bool:
        """Save it; return False, and save nothing, if it was deleted."""
        return self._update(value)

    def of_tenant(self, tenant: TenantId) -> Sequence[Upload]:
        """Return the tenant's uploads, oldest first, expired ones included until they are deleted."""
        return self._all(_OF_TENANT, tenant=tenant)

    def live(self, now: datetime) -> Sequence[UploadId]:
        """Return all tenants' uploads that have not expired."""
        return self._connection.scalars(_LIVE, {"now": now}).all()

    def expired(self, now: datetime) -> Sequence[UploadId]:
        """Return all tenants' expired uploads."""
        return self._connection.scalars(_EXPIRED, {"now": now}).all()

    def delete(self, upload: UploadId) -> None:
        """Delete it. Idempotent."""
        self._change(delete(uploads).where(_by_id), upload=upload)


#: Bytes of a chunk; the last one of an upload is shorter. A request of one byte stores a chunk again: larger ones would
#: cost the database more yet.
CHUNK_BYTES = 1 << 18


_chunk = upload_chunks.c
_of_upload = _chunk.upload_id == bindparam("upload")

_CHUNK = select(_chunk.content).where(_of_upload, _chunk.number == bindparam("at"))
_BYTES = func.coalesce(func.sum(_chunk.size), 0)
_SIZE = select(_BYTES).where(_of_upload)
_OF_TENANTS = (
    select(uploads.c.tenant_id, _BYTES)
    .select_from(upload_chunks.outerjoin(uploads, uploads.c.id == _chunk.upload_id))
    .group_by(uploads.c.tenant_id)
)
_IDS = select(_chunk.upload_id).where(_chunk.number == 0)
_DELETE = delete(upload_chunks).where(_of_upload)


class StoredUploads(Queries):
    def put_last(self, upload: UploadId, number: int, content: bytes) -> int:
        """Store or replace a chunk, and delete those after it; without content it, too. The first one has number 0.

        Return by how many bytes the upload has grown.
        """
        place = {"upload": upload, "at": number}
        replaced = int(self._connection.execute(_SIZE.where(_chunk.number >= bindparam("at")), place).scalar_one())
        if replaced:
            self._connection.execute(_DELETE.where(_chunk.number >= bindparam("at")), place)
        if content:
            values = {"upload_id": upload, "number": number, "size": len(content), "content": content}
            self._connection.execute(insert(upload_chunks), values)
        return len(content) - replaced

    def chunk(self, upload: UploadId, number: int) -> bytes | None:
        """Return a chunk, or None where there is none."""
        found: bytes | None = self._connection.scalar(_CHUNK, {"upload": upload, "at": number})
        return found

    def size(self, upload: UploadId) -> int:
        """Return the bytes of all chunks of an upload."""
        return int(self._connection.execute(_SIZE, {"upload": upload}).scalar_one())

    def of_tenants(self) -> Mapping[TenantId | None, int]:
        """Return the bytes of each tenant's uploads together; None has those without a record."""
        return {tenant and TenantId(tenant): int(size) for tenant, size in self._connection.execute(_OF_TENANTS)}

    def ids(self) -> Collection[UploadId]:
        """Return the uploads that have chunks."""
        return frozenset(map(UploadId, self._connection.scalars(_IDS).all()))

    def delete(self, upload: UploadId) -> None:
        """Delete an upload's chunks. Idempotent."""
        self._change(_DELETE, upload=upload)
