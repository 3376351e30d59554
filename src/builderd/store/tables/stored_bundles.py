"""The tables of bundles in the database."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Table, Text

from builderd.store.tables.base import metadata

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
