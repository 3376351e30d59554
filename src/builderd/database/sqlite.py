"""SQLite: one file of mode 0600 in WAL mode, with one writer that does not block readers."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, QueuePool, StaticPool, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError

from builderd.database.connection import ENGINE_OPTIONS, Database

log = logging.getLogger(__name__)

READERS = 4
#: Seconds after which a check for damage ends.
CHECK_SECONDS = 30.0
#: Steps of SQLite's machine between two looks at the time; faults that a check lists, and characters of them.
_PROGRESS_STEPS, _MOST_FINDINGS, _MOST_TEXT = 10_000, 3, 300
#: Bytes that each file may grow by on a full disk. A builder's record takes a few pages of 4 KB.
ROOM = 16 << 20
_BLOCK, _ROOM_TIMEOUT = 512, 30.0
#: Wait for another process that writes, at most so many seconds.
BUSY_TIMEOUT = 30


def open_sqlite(url: URL) -> Database:
    """Return a database on SQLite, without connecting; in memory when the URL names no file.

    The first connection creates the file (0600) and its folder (0700).
    """
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
        outage_reason=outage_reason,
        find_damage=list if path is None else partial(_find_damage, path),
    )


#: Remedy of a damaged file, which SQLite reports of a disk that gives no bytes as well.
RESTORE = (
    "look at its disk (dmesg, smartctl). If that is sound, stop the service, move the database away, and bring back a "
    "backup of the service's state (builderd restore)"
)
#: Fault of the file and its remedy, by result code (https://www.sqlite.org/rescode.html).
_OUTAGES = {
    sqlite3.SQLITE_BUSY: f"is locked: another process has been writing to it for {BUSY_TIMEOUT} s (fuser names it)",
    sqlite3.SQLITE_FULL: "cannot grow: its disk is full, so free space there (df -h)",
    sqlite3.SQLITE_IOERR: "cannot be read or written: look at its disk (dmesg, df -h)",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: look at its folder, its disk (df -h) and the limit of open files",
    sqlite3.SQLITE_NOMEM: "cannot be used: the machine is out of memory",
    sqlite3.SQLITE_CORRUPT: f"is damaged: {RESTORE}",
    sqlite3.SQLITE_NOTADB: f"is damaged: {RESTORE}",
}


def outage_reason(error: Exception) -> str | None:
    """Describe the fault of the file. Return None for any other error.

    Errors of ``BEGIN`` and of opening the file come from the driver itself, not wrapped by SQLAlchemy.
    """
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, OSError):
        return f"cannot be opened: {original.strerror or original}"
    return _OUTAGES.get(getattr(original, "sqlite_errorcode", 0) & 0xFF)


def _find_damage(path: Path) -> Sequence[str] | None:
    """Return what ``PRAGMA quick_check`` finds, with the remedy; None when it did not end in ``CHECK_SECONDS``."""
    if not path.exists():
        return []
    until = time.monotonic() + CHECK_SECONDS
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", timeout=BUSY_TIMEOUT, uri=True)) as connection:
            connection.set_progress_handler(lambda: time.monotonic() > until, _PROGRESS_STEPS)
            found = [str(row[0]) for row in connection.execute(f"PRAGMA quick_check({_MOST_FINDINGS})")]
    except sqlite3.Error as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_BUSY):
            log.info("database check not finished seconds=%g", CHECK_SECONDS)
            return None
        reason = outage_reason(error)
        return [f"it {reason}"] if reason else []
    if found == ["ok"]:
        return []
    return [f"it is damaged ({' '.join('; '.join(found).split())[:_MOST_TEXT]}): {RESTORE}"]


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
        # The connection used last: its cache has the pages, and its statements are prepared.
        pool_use_lifo=True,
        connect_args={"timeout": BUSY_TIMEOUT, "cached_statements": 256},
        **ENGINE_OPTIONS,
    )
    event.listen(engine, "do_connect", lambda *_: _make_private(path))
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "connect", _use_wal)
    event.listen(engine, "begin", _begin)
    return engine


def _make_private(path: Path) -> None:
    """Create the file with mode 0600, which SQLite copies to its -wal and -shm files.

    Uses ``mknod`` instead of opening the file: closing a descriptor of it would drop the locks that SQLite holds in
    this process (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.mknod(path, stat.S_IFREG | 0o600)
    path.chmod(0o600)


def _set_up(connection: sqlite3.Connection, _: Any) -> None:
    # Disable the driver's implicit transactions: _begin starts them.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")


def _use_wal(connection: sqlite3.Connection, _: Any) -> None:
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # Another connection blocks the switch, for which SQLite's busy timeout does not wait.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        if time.monotonic() > deadline:
            raise TimeoutError("another process keeps the database from being switched to WAL mode: end it")
        time.sleep(0.01)
    # The log is synced before a transaction counts as committed: a power cut loses nothing that was answered.
    connection.execute("PRAGMA synchronous = FULL")


def _begin(connection: Connection) -> None:
    driver, options = _driver(connection), connection.get_execution_options()
    reads, durable = options.get("read_only", False), options.get("durable", True)
    # Only when it changes: the pragma makes SQLite prepare every statement again.
    if connection.info.get("reads") is not reads:
        driver.execute(f"PRAGMA query_only = {reads:d}")
        connection.info["reads"] = reads
    if connection.info.get("durable", True) is not durable:
        driver.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.info["durable"] = durable
    # A writer locks at once: upgrading a read transaction later can fail with SQLITE_BUSY, and waiting does not help.
    driver.execute("BEGIN" if reads else "BEGIN IMMEDIATE")


@contextmanager
def _begin_migration(engine: Engine) -> Iterator[Connection]:
    """Open a migration with foreign keys off, since SQLite alters a table by rebuilding it; check them at the end.

    Raises ``RuntimeError`` when the migration broke a foreign key.
    """
    with engine.connect() as connection:
        driver = _driver(connection)
        driver.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                before = _changes(driver)
                yield connection
                # Only after a change: it reads every row, which a start without a migration need not wait for.
                broken = driver.execute("PRAGMA foreign_key_check").fetchall() if _changes(driver) != before else []
                if broken:
                    raise RuntimeError(f"the migration broke foreign keys: {broken[:5]}")
        finally:
            driver.execute("PRAGMA foreign_keys = ON")


def _changes(driver: sqlite3.Connection) -> tuple[int, int]:
    """Return what grows with each row that this connection changes, and with each change of the schema."""
    return driver.total_changes, driver.execute("PRAGMA schema_version").fetchone()[0]


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def keep_room(url: str) -> None:
    """Allocate ``ROOM`` bytes behind the end of the database's file and its log, where less than half is left of them.

    Without them a deletion could not be recorded once the disk is full, and so nothing could free space. Does nothing
    for another database, and where the file system cannot do it or has no space left.
    """
    for file in _files(url):
        try:
            status = file.stat()
        except OSError:
            continue
        if status.st_blocks * _BLOCK >= status.st_size + ROOM // 2:
            continue
        # A program of its own: this process would drop SQLite's locks by closing a descriptor of these files
        # (https://www.sqlite.org/howtocorrupt.html, 2.2).
        command = ["fallocate", "--keep-size", "--offset", str(status.st_size), "--length", str(ROOM), str(file)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_ROOM_TIMEOUT)
        except (OSError, subprocess.SubprocessError) as error:
            log.debug("no room allocated for the database file=%s error=%s", file, error)


def _files(url: str) -> Iterator[Path]:
    found = make_url(url)
    if found.get_backend_name() == "sqlite" and found.database not in (None, "", ":memory:"):
        yield Path(str(found.database))
        yield Path(f"{found.database}-wal")
