"""SQLite: one file of its owner alone, in WAL mode, with one writer and readers that it does not hinder."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, QueuePool, StaticPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from builderd.adapters.stores.sql.database import ENGINE_OPTIONS, Database

READERS = 4
#: How long to wait for another process that writes, in seconds.
BUSY_TIMEOUT = 30


def open_sqlite(url: URL) -> Database:
    """The file is made at the first connection, in its folder, both for the owner alone. Without a file: in memory."""
    path = None if url.database in (None, "", ":memory:") else Path(str(url.database))
    writing = _memory_engine(url) if path is None else _file_engine(url, path, 1)
    reading = writing if path is None else _file_engine(url, path, READERS)
    return Database(
        writing=writing,
        reading=reading.execution_options(read_only=True),
        writers=1,
        readers=0 if path is None else READERS,
        begin_migration=lambda: _begin_migration(writing),
        is_passing=lambda error: False,
        why_down=why_down,
    )


#: By result code (https://www.sqlite.org/rescode.html): what is wrong with the file, and its cure.
_FAULTS = {
    sqlite3.SQLITE_BUSY: f"is locked: another process has been writing to it for {BUSY_TIMEOUT} s (fuser names it)",
    sqlite3.SQLITE_FULL: "cannot grow: its disk is full, so free space there (df -h)",
    sqlite3.SQLITE_IOERR: "cannot be read or written: look at its disk (dmesg, df -h)",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: look at its folder, its disk (df -h) and the limit of open files",
    sqlite3.SQLITE_NOMEM: "cannot be used: the machine is out of memory",
    sqlite3.SQLITE_CORRUPT: "is damaged: bring back a backup of the service's state (builderd restore)",
    sqlite3.SQLITE_NOTADB: "is damaged: bring back a backup of the service's state (builderd restore)",
}


def why_down(error: Exception) -> str | None:
    """Say what is wrong with the file, None for an error of the work.

    What begins a transaction or opens the file comes from the driver itself, without SQLAlchemy around it.
    """
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, OSError):
        return f"cannot be opened: {original.strerror or original}"
    return _FAULTS.get(getattr(original, "sqlite_errorcode", 0) & 0xFF)


def _memory_engine(url: URL) -> Engine:
    engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False}, **ENGINE_OPTIONS)
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def _file_engine(url: URL, path: Path, connections: int) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        connect_args={"timeout": BUSY_TIMEOUT, "cached_statements": 256},
        **ENGINE_OPTIONS,
    )
    event.listen(engine, "do_connect", lambda *_: _make_private(path))
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "connect", _use_wal)
    event.listen(engine, "begin", _begin)
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
    deadline = time.monotonic() + BUSY_TIMEOUT
    while not _switch_to_wal(connection):
        if time.monotonic() > deadline:
            raise TimeoutError("another process keeps the database from being switched to WAL mode: end it")
        time.sleep(0.01)
    # A power cut may take the last transactions, never the consistency; a killed process loses nothing.
    connection.execute("PRAGMA synchronous = NORMAL")


def _switch_to_wal(connection: sqlite3.Connection) -> bool:
    """False while another connection is in the way, for which SQLite's own timeout does not wait here."""
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


def _begin(connection: Connection) -> None:
    driver = _driver(connection)
    reads = connection.get_execution_options().get("read_only", False)
    # Only where it changes: it has every statement prepared anew.
    if connection.info.get("reads") is not reads:
        driver.execute(f"PRAGMA query_only = {reads:d}")
        connection.info["reads"] = reads
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
