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
    delete,
    func,
    insert,
    select,
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

#: Bytes of a chunk of a bundle, and of an upload; the last one is shorter. A request of one byte stores a chunk of an
#: upload again: larger ones would cost the database more yet.
CHUNK_BYTES, UPLOAD_CHUNK_BYTES = 1 << 20, 1 << 18

_bundle, _chunk, _part = stored_bundles.c, bundle_chunks.c, upload_chunks.c
_part_bytes = func.coalesce(func.sum(_part.size), 0)


class StoredBundles(Queries):
    """A bundle's chunks are put one by one, each in a transaction of its own; ``complete`` makes them a bundle."""

    def put_chunk(self, bundle_hash: str, number: int, content: bytes) -> None:
        """Store or replace a chunk; the first one has the number 0."""
        self._change(delete(bundle_chunks).where(_chunk.hash == bundle_hash, _chunk.number == number))
        self._change(insert(bundle_chunks), hash=bundle_hash, number=number, content=content)

    def complete(self, bundle_hash: str, size: int) -> None:
        """Record that all chunks of ``size`` bytes are stored. Idempotent."""
        if self.size(bundle_hash) is None:
            self._change(insert(stored_bundles), hash=bundle_hash, size=size)

    def size(self, bundle_hash: str) -> int | None:
        """Return the bytes of a complete bundle, else None."""
        return self._connection.scalar(select(_bundle.size).where(_bundle.hash == bundle_hash))

    def chunk(self, bundle_hash: str, number: int) -> bytes | None:
        """Return a chunk, or None where there is none."""
        is_it = _chunk.hash == bundle_hash, _chunk.number == number
        return self._connection.scalar(select(_chunk.content).where(*is_it))

    def sizes(self) -> Mapping[str, int]:
        """Return the bytes of all complete bundles, by hash."""
        return {row.hash: row.size for row in self._connection.execute(select(_bundle.hash, _bundle.size))}

    def hashes(self) -> Collection[str]:
        """Return the hashes of all bundles, also of those that were cut off: these have their first chunk alone."""
        either = select(_bundle.hash).union(select(_chunk.hash).where(_chunk.number == 0))
        return frozenset(self._connection.scalars(either).all())

    def delete(self, bundle_hash: str) -> None:
        """Delete the bundle and its chunks. Idempotent."""
        self._change(delete(stored_bundles).where(_bundle.hash == bundle_hash))
        self._change(delete(bundle_chunks).where(_chunk.hash == bundle_hash))


class Uploads(Repository[Upload]):
    _table, _record = uploads, Upload

    def get(self, upload: UploadId) -> Upload | None:
        return self._first(select(uploads).where(uploads.c.id == upload))

    def update(self, value: Upload) -> bool:
        """Save it; return False, and save nothing, if it was deleted."""
        return self._update(value)

    def of_tenant(self, tenant: TenantId) -> Sequence[Upload]:
        """Return the tenant's uploads, oldest first, expired ones included until they are deleted."""
        return self._all(select(uploads).where(uploads.c.tenant_id == tenant).order_by(uploads.c.created_at))

    def live(self, now: datetime) -> Sequence[UploadId]:
        """Return all tenants' uploads that have not expired."""
        return self._connection.scalars(select(uploads.c.id).where(uploads.c.expires_at > now)).all()

    def expired(self, now: datetime) -> Sequence[UploadId]:
        """Return all tenants' expired uploads."""
        return self._connection.scalars(select(uploads.c.id).where(uploads.c.expires_at <= now)).all()

    def delete(self, upload: UploadId) -> None:
        """Delete it. Idempotent."""
        self._change(delete(uploads).where(uploads.c.id == upload))


class StoredUploads(Queries):
    def put_last(self, upload: UploadId, number: int, content: bytes) -> int:
        """Store or replace a chunk, and delete those after it; without content it, too. The first one has number 0.

        Return by how many bytes the upload has grown.
        """
        from_here = _part.upload_id == upload, _part.number >= number
        replaced = int(self._connection.execute(select(_part_bytes).where(*from_here)).scalar_one())
        self._change(delete(upload_chunks).where(*from_here))
        if content:
            self._change(insert(upload_chunks), upload_id=upload, number=number, size=len(content), content=content)
        return len(content) - replaced

    def chunk(self, upload: UploadId, number: int) -> bytes | None:
        """Return a chunk, or None where there is none."""
        is_it = _part.upload_id == upload, _part.number == number
        return self._connection.scalar(select(_part.content).where(*is_it))

    def size(self, upload: UploadId) -> int:
        """Return the bytes of all chunks of an upload."""
        return int(self._connection.execute(select(_part_bytes).where(_part.upload_id == upload)).scalar_one())

    def of_tenants(self) -> Mapping[TenantId | None, int]:
        """Return the bytes of each tenant's uploads together; None has those without a record."""
        recorded = upload_chunks.outerjoin(uploads, uploads.c.id == _part.upload_id)
        sums = select(uploads.c.tenant_id, _part_bytes).select_from(recorded).group_by(uploads.c.tenant_id)
        return {tenant and TenantId(tenant): int(size) for tenant, size in self._connection.execute(sums)}

    def ids(self) -> Collection[UploadId]:
        """Return the uploads that have chunks."""
        first = select(_part.upload_id).where(_part.number == 0)
        return frozenset(map(UploadId, self._connection.scalars(first).all()))

    def delete(self, upload: UploadId) -> None:
        """Delete an upload's chunks. Idempotent."""
        self._change(delete(upload_chunks).where(_part.upload_id == upload))
