"""Stores for tests. The fast one is the real one, on SQLite in memory: there is no other fake."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from builderd.adapters.stores.sql.store import SqlStore

MEMORY = "sqlite://"
#: What a migrated database in memory consists of, once somebody made one: a copy takes less than a new one.
_migrated: list[bytes] = []


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[SqlStore]:
    """With its schema, and closed in the end."""
    store = SqlStore(url)
    try:
        await store.migrate()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def memory_store() -> AsyncIterator[SqlStore]:
    """Empty, ready in under a millisecond, gone when it is closed."""
    store = SqlStore(MEMORY)
    try:
        if _migrated:
            _database(store).deserialize(_migrated[0])
        else:
            await store.migrate()
            _migrated.append(_database(store).serialize())
        yield store
    finally:
        await store.close()


def _database(store: SqlStore) -> sqlite3.Connection:
    with store._database.writing.connect() as connection:
        driver = connection.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
