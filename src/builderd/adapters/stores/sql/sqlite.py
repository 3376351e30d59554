"""SQLite: one file of its owner alone, in WAL mode, with one writer and readers that it does not hinder."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, QueuePool, StaticPool, create_engine, event

from builderd.adapters.stores.sql.database import Database, write_json

READERS = 4
#: How long to wait for another process that writes, in seconds.
BUSY_TIMEOUT = 30


def open_sqlite(url: URL) -> Database:
    """The file is made at the first connection, in its folder, both for the owner alone. Without a file: in memory."""
    path = None if url.database in (None, "", ":memory:") else Path(str(url.database))
    engine = _memory_engine(url) if path is None else _file_engine(url, path)
    event.listen(engine, "begin", _begin)
    reading = engine.execution_options(read_only=True)
    return Database(
        engine=engine,
        writers=1,
        readers=0 if path is None else READERS,
        begin_write=engine.begin,
        begin_read=reading.begin,
        begin_migration=lambda: _begin_migration(engine),
        is_passing=lambda error: False,
    )


def _memory_engine(url: URL) -> Engine:
    engine = create_engine(
        url, poolclass=StaticPool, connect_args={"check_same_thread": False}, json_serializer=write_json
    )
    event.listen(engine, "connect", _set_up)
    return engine


def _file_engine(url: URL, path: Path) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=1 + READERS,
        max_overflow=0,
        connect_args={"timeout": BUSY_TIMEOUT, "cached_statements": 256},
        json_serializer=write_json,
    )
    event.listen(engine, "do_connect", lambda *_: _make_private(path))
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "connect", _use_wal)
    return engine


def _make_private(path: Path) -> None:
    """The files beside it (-wal, -shm) take over its mode.

    It is made without being opened: to close a descriptor of it would drop the locks that SQLite holds in this process
    (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.mknod(path, stat.S_IFREG | 0o600)
    path.chmod(0o600)


def _set_up(connection: sqlite3.Connection, _: Any) -> None:
    # The driver would begin transactions when it sees fit; _begin does it instead.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")


def _use_wal(connection: sqlite3.Connection, _: Any) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    # A power cut may take the last transactions, never the consistency; a killed process loses nothing.
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin(connection: Connection) -> None:
    driver = _driver(connection)
    reads = connection.get_execution_options().get("read_only", False)
    driver.execute(f"PRAGMA query_only = {reads:d}")
    # A writer takes its lock at once: to read first and then wait for it is an error that no waiting mends.
    driver.execute("BEGIN" if reads else "BEGIN IMMEDIATE")


@contextmanager
def _begin_migration(engine: Engine) -> Iterator[Connection]:
    """Without foreign keys, since SQLite changes a table by making it anew; they are checked at the end."""
    with engine.connect() as connection:
        driver = _driver(connection)
        driver.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                yield connection
                broken = driver.execute("PRAGMA foreign_key_check").fetchall()
                if broken:
                    raise RuntimeError(f"the migration broke foreign keys: {broken[:5]}")
        finally:
            driver.execute("PRAGMA foreign_keys = ON")


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
