"""PostgreSQL: write transactions wait for locked rows (READ COMMITTED), read transactions see one snapshot.

Writes are READ COMMITTED on purpose: at a stricter level, a row that another transaction had locked yields an error
instead of its newest state, and with many writers of one builder the retries ran out. The lost update that a stricter
level would catch cannot happen, since only locked builders can be saved.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from builderd.database.connection import ENGINE_OPTIONS, Database

R = TypeVar("R")

WRITERS = 8
READERS = 4
#: The server ends a session whose transaction is idle for so many milliseconds, which releases its locks.
IDLE_IN_TRANSACTION = 60_000
#: The server ends a statement after so many milliseconds, the wait for locks included.
STATEMENT_TIMEOUT = 20_000
#: A connection is closed when the server sends nothing for so many seconds: the server or the network hangs.
SILENCE_SECONDS = 25.0
#: Both limits for a migration, in seconds: it rewrites tables and waits for other processes that migrate.
MIGRATION_SECONDS = 3600.0
#: The key of the advisory lock that a migration holds.
MIGRATION_LOCK = 0x6275_696C_6465_7264

# https://www.postgresql.org/docs/current/errcodes-appendix.html
SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
# Repositories look for a taken name or key first and then insert, so this code means that another transaction inserted
# it in between: the next run finds that row.
UNIQUE_VIOLATION = "23505"
#: Fault of the server and its remedy, by prefix of the error code (SQLSTATE).
_OUTAGES = {
    "08": "the connection to it broke off",
    "57P01": "its server is stopping",
    "57P02": "its server is stopping",
    "57P03": "its server is starting",
    "57014": f"a statement was ended after {STATEMENT_TIMEOUT // 1000} s: the server is overloaded, or holds a lock",
    "53300": "its server takes no more connections: raise max_connections",
    "53100": "the disk of its server is full: free space there",
    "53200": "its server is out of memory",
    "58": "its server cannot read or write its disk: see the server's log",
    "XX001": "it is damaged: see the server's log, and bring back a backup",
    "XX002": "it is damaged: see the server's log, and bring back a backup",
}


def open_postgresql(url: URL) -> Database:
    """Return a database on PostgreSQL, without connecting.

    The URL's query may hold libpq parameters, such as ``?sslmode=verify-full&sslrootcert=…``.
    """
    writing, reading = _engine(url, WRITERS, "READ COMMITTED"), _engine(url, READERS, "REPEATABLE READ")
    return Database(
        # Said for each transaction, so that a standby refuses the first one.
        writing=writing.execution_options(postgresql_readonly=False),
        reading=reading.execution_options(postgresql_readonly=True),
        writers=WRITERS,
        readers=READERS,
        begin_migration=lambda: _begin_migration(writing),
        is_passing=is_passing,
        outage_reason=outage_reason,
        find_damage=list,
    )


def _engine(url: URL, connections: int, isolation: str) -> Engine:
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=connections,
        max_overflow=0,
        # The connection used last: its server process has the catalog in memory, and the statements prepared.
        pool_use_lifo=True,
        # A connection that broke, as all do when the server restarts, is replaced before it is used.
        pool_pre_ping=True,
        isolation_level=isolation,
        connect_args=connect_arguments(url),
        **ENGINE_OPTIONS,
    )
    event.listen(engine, "do_connect", lambda _dialect, _record, args, options: Link.connect(*args, **options))
    return engine


class Link(psycopg.Connection[Any]):
    """A connection that is closed when the server sends nothing for ``silence`` seconds.

    The server's own timeouts and TCP keepalives do not cover a stopped server process or a hanging disk: the server's
    kernel still acknowledges packets.
    """

    silence = SILENCE_SECONDS

    def wait(self, gen: Generator[Any, Any, R], *args: Any, **options: Any) -> R:
        try:
            return super().wait(_within(self.silence, gen), *args, **options)
        except _Silent as error:
            self.close()
            raise psycopg.OperationalError(f"the server said nothing for {self.silence:g} s") from error


class _Silent(Exception):
    """The server sent nothing in time."""


def _within(seconds: float, work: Generator[Any, Any, R]) -> Generator[Any, Any, R]:
    """Run the driver's generator; raise ``_Silent`` when the server sends nothing for ``seconds``."""
    deadline = time.monotonic() + seconds
    try:
        wanted = next(work)
        while True:
            ready = yield wanted
            # The driver's wait resumes the generator every 0.1 s, with a false value when nothing arrived.
            if ready:
                deadline = time.monotonic() + seconds
            elif time.monotonic() > deadline:
                raise _Silent
            wanted = work.send(ready)
    except StopIteration as end:
        result: R = end.value
        return result


def connect_arguments(url: URL) -> dict[str, Any]:
    """Return psycopg's arguments for each connection; a parameter in the URL overrides the default here."""
    settings = (
        f"-c timezone=UTC -c datestyle=ISO -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION} "
        f"-c statement_timeout={STATEMENT_TIMEOUT}"
    )
    defaults = {"application_name": "builderd", "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10}
    chosen = {name: value for name, value in defaults.items() if name not in url.query}
    return {**chosen, "options": f"{settings} {url.query.get('options', '')}".strip()}


def is_passing(error: DBAPIError) -> bool:
    """Return True for a conflict with another transaction, after which this one may succeed when run again."""
    state = getattr(error.orig, "sqlstate", None)
    return state in (SERIALIZATION_FAILURE, DEADLOCK_DETECTED, UNIQUE_VIOLATION)


def outage_reason(error: Exception) -> str | None:
    """Describe the fault of the server or of the connection to it. Return None for any other error."""
    if isinstance(error, NoConnectionFree):
        return "all connections to it are in use"
    if not isinstance(error, DBAPIError):
        return None
    state = getattr(error.orig, "sqlstate", None)
    # "cannot set transaction read-write mode during recovery": other statements have this code for other faults.
    if state == "0A000" and "recovery" in str(error.orig):
        return "its server is a standby, which takes only reads: name the one that takes writes, or promote it"
    if state is None:
        # An error without a SQLSTATE did not come from the server.
        unreached = isinstance(error, OperationalError | InterfaceError)
        return "it does not answer: is its server up, and can it be reached?" if unreached else None
    return next((reason for code, reason in _OUTAGES.items() if state.startswith(code)), None)


@contextmanager
def _begin_migration(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as connection, _no_statement_timeout(connection):
        connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        yield connection


@contextmanager
def _no_statement_timeout(connection: Connection) -> Iterator[None]:
    """Raise the timeouts of statements and of silence to ``MIGRATION_SECONDS``, for this transaction only."""
    link = _link(connection)
    connection.execute(text(f"SET LOCAL statement_timeout = {int(MIGRATION_SECONDS * 1000)}"))
    link.silence = MIGRATION_SECONDS
    try:
        yield
    finally:
        # Fall back to the class attribute.
        del link.silence


def _link(connection: Connection) -> Link:
    link = connection.connection.dbapi_connection
    assert isinstance(link, Link)
    return link
