"""The table of uploads' bytes in the database."""

from __future__ import annotations

from sqlalchemy import Column, Integer, LargeBinary, Table, Text

from builderd.store.tables.base import metadata

# Without a reference to the upload: its bytes are deleted before it, and what is left of one is swept.
upload_chunks = Table(
    "upload_chunks",
    metadata,
    Column("upload_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("size", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),
)
