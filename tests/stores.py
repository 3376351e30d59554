"""Stores for tests. The fast one is the real one, on SQLite in memory: there is no other fake."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from builderd.database.connection import Database
from builderd.database.unit_of_work import Store

MEMORY = "sqlite://"
#: What a migrated database in memory consists of, once somebody made one: a copy takes less than a new one.
_migrated: list[bytes] = []
#: Engines whose store was closed: they have compiled the statements that the next test runs too. Closing has dropped
#: their connection, and the database with it.
_idle: list[Database] = []


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    """Open a store with its schema, and close it in the end."""
    store = Store(url)
    try:
        await store.migrate()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def memory_store() -> AsyncIterator[Store]:
    """Empty, ready in under a millisecond, gone when it is closed."""
    store = Store(MEMORY)
    if _idle:
        store._database = _idle.pop()
    try:
        if _migrated:
            _database(store).deserialize(_migrated[0])
        else:
            await store.migrate()
            _migrated.append(_database(store).serialize())
        yield store
    finally:
        await store.close()
        _idle.append(store._database)


async def write_database(path: Path) -> None:
    """Make the file a migrated database without a row."""
    if not _migrated:
        async with memory_store():
            pass
    path.write_bytes(_migrated[0])


def _database(store: Store) -> sqlite3.Connection:
    with store._database.writing.connect() as connection:
        driver = connection.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
