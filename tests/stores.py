"""Stores for tests. The fast one is the real one, on SQLite in memory: there is no other fake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from builderd.adapters.stores.sql.store import SqlStore


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[SqlStore]:
    """With its schema, and closed in the end."""
    store = SqlStore(url)
    try:
        await store.migrate()
        yield store
    finally:
        await store.close()


def memory_store() -> AbstractAsyncContextManager[SqlStore]:
    """``async with memory_store() as store``: empty, ready in some 15 ms, gone when it is closed."""
    return open_store("sqlite://")
