"""PostgreSQL: work that writes waits for the rows that others have locked; work that reads sees one snapshot.

Writes are READ COMMITTED on purpose: a stricter level answers a row that somebody else had locked with an error
instead of its newest state, and under many writers of one builder its retries ran out. What it would have caught, a
change overwritten by who had read the row before it, is ruled out since only locked builders can be saved.
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

from builderd.adapters.stores.sql.database import ENGINE_OPTIONS, Database

R = TypeVar("R")

WRITERS = 8
READERS = 4
#: A control plane that is stuck within a transaction loses it, and so its locks, after so many milliseconds.
IDLE_IN_TRANSACTION = 60_000
#: A statement may take so long, the wait for locks included; then the server ends it. In milliseconds.
STATEMENT_TIMEOUT = 20_000
#: A server that says nothing for so long is given up with its connection: it hangs, or the network to it does.
SILENCE_SECONDS = 25.0
#: A migration rewrites tables, and waits for others that migrate.
MIGRATION_SECONDS = 3600.0
#: The key of the advisory lock that a migration holds.
MIGRATION_LOCK = 0x6275_696C_6465_7264

# https://www.postgresql.org/docs/current/errcodes-appendix.html
SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
# Repositories look for a taken name or key first and then insert, so this one means that somebody was faster: the
# next look finds what they inserted.
UNIQUE_VIOLATION = "23505"
#: What is wrong with the server, and its cure, by the beginning of an error's code.
_FAULTS = {
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
    """Parameters of libpq may follow the URL, such as ``?sslmode=verify-full&sslrootcert=…``."""
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        isolation_level="READ COMMITTED",
        pool_size=WRITERS + READERS,
        max_overflow=0,
        # A restarted server costs nobody a request.
        pool_pre_ping=True,
        connect_args=connect_arguments(url),
        **ENGINE_OPTIONS,
    )
    event.listen(engine, "do_connect", lambda _dialect, _record, args, options: Link.connect(*args, **options))
    return Database(
        writing=engine,
        reading=engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True),
        writers=WRITERS,
        readers=READERS,
        begin_migration=lambda: _begin_migration(engine),
        is_passing=is_passing,
        why_down=why_down,
    )


class Link(psycopg.Connection[Any]):
    """A connection that is closed when the server says nothing for ``silence`` seconds.

    Neither the server's own timeouts nor TCP's help against a server that is stopped, or a disk of its that hangs: the
    kernel goes on confirming that it lives.
    """

    silence = SILENCE_SECONDS

    def wait(self, gen: Generator[Any, Any, R], *args: Any, **options: Any) -> R:
        try:
            return super().wait(_within(self.silence, gen), *args, **options)
        except _Silent as error:
            self.close()
            raise psycopg.OperationalError(f"the server said nothing for {self.silence:g} s") from error


class _Silent(Exception):
    """The server has not said anything in time."""


def _within(seconds: float, work: Generator[Any, Any, R]) -> Generator[Any, Any, R]:
    """The driver's own steps, as long as the server says something from time to time."""
    deadline = time.monotonic() + seconds
    try:
        wanted = next(work)
        while True:
            ready = yield wanted
            # Whoever waits wakes up every 0.1 s, with nothing.
            if ready:
                deadline = time.monotonic() + seconds
            elif time.monotonic() > deadline:
                raise _Silent
            wanted = work.send(ready)
    except StopIteration as end:
        result: R = end.value
        return result


def connect_arguments(url: URL) -> dict[str, Any]:
    """What each connection is opened with besides the URL; what the URL says itself goes first."""
    settings = (
        f"-c timezone=UTC -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION} "
        f"-c statement_timeout={STATEMENT_TIMEOUT}"
    )
    defaults = {"application_name": "builderd", "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10}
    chosen = {name: value for name, value in defaults.items() if name not in url.query}
    return {**chosen, "options": f"{settings} {url.query.get('options', '')}".strip()}


def is_passing(error: DBAPIError) -> bool:
    """Whether the transaction met another one, so that it may come through when it is run again."""
    state = getattr(error.orig, "sqlstate", None)
    return state in (SERIALIZATION_FAILURE, DEADLOCK_DETECTED, UNIQUE_VIOLATION)


def why_down(error: Exception) -> str | None:
    """Say what is wrong with the server or the way to it, None for an error of the work."""
    if isinstance(error, NoConnectionFree):
        return "all connections to it are in use"
    if not isinstance(error, DBAPIError):
        return None
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        # What never reached the server has no state.
        unreached = isinstance(error, OperationalError | InterfaceError)
        return "it does not answer: is its server up, and can it be reached?" if unreached else None
    return next((fault for code, fault in _FAULTS.items() if state.startswith(code)), None)


@contextmanager
def _begin_migration(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as connection, _unhurried(connection):
        connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        yield connection


@contextmanager
def _unhurried(connection: Connection) -> Iterator[None]:
    """Let its statements take ``MIGRATION_SECONDS``, in this transaction alone."""
    link = connection.connection.dbapi_connection
    assert isinstance(link, Link)
    connection.execute(text(f"SET LOCAL statement_timeout = {int(MIGRATION_SECONDS * 1000)}"))
    link.silence = MIGRATION_SECONDS
    try:
        yield
    finally:
        # The class has the usual one.
        del link.silence
