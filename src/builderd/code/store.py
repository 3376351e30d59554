"""Bundles and uploads in SQL: one row a chunk, one a complete bundle, and one an upload."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    Table,
    Text,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from builderd.core.ids import TenantId, UploadId
from builderd.database.columns import metadata
from builderd.database.repository import Queries, Repository
from builderd.database.types import UtcDateTime
from builderd.files.model import Upload

uploads = Table(
    "uploads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False, index=True),
    Column("secret_hash", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("size", BigInteger),
    Column("sha256", Text),
    Column("complete", Boolean, nullable=False),
    Column("token_id", Text),
)

# Without a reference to the upload: its bytes are deleted before it, and what is left of one is swept.
upload_chunks = Table(
    "upload_chunks",
    metadata,
    Column("upload_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("size", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),
)

# A row says that all of the bundle's chunks are there.
stored_bundles = Table(
    "stored_bundles",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
)

bundle_chunks = Table(
    "bundle_chunks",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("content", LargeBinary, nullable=False),
)

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
UPLOAD_CHUNK_BYTES = 1 << 18


_part = upload_chunks.c
_of_upload = _part.upload_id == bindparam("upload")

_PART = select(_part.content).where(_of_upload, _part.number == bindparam("at"))
_BYTES = func.coalesce(func.sum(_part.size), 0)
_UPLOAD_SIZE = select(_BYTES).where(_of_upload)
_OF_TENANTS = (
    select(uploads.c.tenant_id, _BYTES)
    .select_from(upload_chunks.outerjoin(uploads, uploads.c.id == _part.upload_id))
    .group_by(uploads.c.tenant_id)
)
_UPLOAD_IDS = select(_part.upload_id).where(_part.number == 0)
_DELETE_PARTS = delete(upload_chunks).where(_of_upload)


class StoredUploads(Queries):
    def put_last(self, upload: UploadId, number: int, content: bytes) -> int:
        """Store or replace a chunk, and delete those after it; without content it, too. The first one has number 0.

        Return by how many bytes the upload has grown.
        """
        place = {"upload": upload, "at": number}
        replaced = int(
            self._connection.execute(_UPLOAD_SIZE.where(_part.number >= bindparam("at")), place).scalar_one()
        )
        if replaced:
            self._connection.execute(_DELETE_PARTS.where(_part.number >= bindparam("at")), place)
        if content:
            values = {"upload_id": upload, "number": number, "size": len(content), "content": content}
            self._connection.execute(insert(upload_chunks), values)
        return len(content) - replaced

    def chunk(self, upload: UploadId, number: int) -> bytes | None:
        """Return a chunk, or None where there is none."""
        found: bytes | None = self._connection.scalar(_PART, {"upload": upload, "at": number})
        return found

    def size(self, upload: UploadId) -> int:
        """Return the bytes of all chunks of an upload."""
        return int(self._connection.execute(_UPLOAD_SIZE, {"upload": upload}).scalar_one())

    def of_tenants(self) -> Mapping[TenantId | None, int]:
        """Return the bytes of each tenant's uploads together; None has those without a record."""
        return {tenant and TenantId(tenant): int(size) for tenant, size in self._connection.execute(_OF_TENANTS)}

    def ids(self) -> Collection[UploadId]:
        """Return the uploads that have chunks."""
        return frozenset(map(UploadId, self._connection.scalars(_UPLOAD_IDS).all()))

    def delete(self, upload: UploadId) -> None:
        """Delete an upload's chunks. Idempotent."""
        self._change(_DELETE_PARTS, upload=upload)
