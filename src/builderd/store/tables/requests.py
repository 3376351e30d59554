"""The tables of retry keys, uploads and stored bundles."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, LargeBinary, Table, Text

from builderd.store.tables.base import document, metadata
from builderd.store.types import UtcDateTime

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant_id", Text, ForeignKey("tenants.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("body_hash", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False, index=True),
    # No foreign key: the record names a builder before it exists, or one that was never created.
    Column("builder_id", Text),
    Column("status", Integer),
    Column("headers", document()),
    Column("body", document()),
    Column("version", Integer),
)


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
