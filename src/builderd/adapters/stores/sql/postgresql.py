"""PostgreSQL: work that writes waits for the rows that others have locked; work that reads sees one snapshot.

Writes are READ COMMITTED on purpose: a stricter level answers a row that somebody else had locked with an error
instead of its newest state, and under many writers of one builder its retries ran out. What it would have caught, a
change overwritten by who had read the row before it, is ruled out since only locked builders can be saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, func, select
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from builderd.adapters.stores.sql.database import ENGINE_OPTIONS, Database

WRITERS = 8
READERS = 4
#: A control plane that is stuck within a transaction loses it, and so its locks, after so many milliseconds.
IDLE_IN_TRANSACTION = 60_000
#: The key of the advisory lock that a migration holds.
MIGRATION_LOCK = 0x6275_696C_6465_7264

# https://www.postgresql.org/docs/current/errcodes-appendix.html
SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
# Repositories look for a taken name or key first and then insert, so this one means that somebody was faster: the
# next look finds what they inserted.
UNIQUE_VIOLATION = "23505"
TOO_MANY_CONNECTIONS = "53300"
# admin_shutdown, crash_shutdown, cannot_connect_now
SHUTTING_DOWN = ("57P01", "57P02", "57P03")


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
    return Database(
        writing=engine,
        reading=engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True),
        writers=WRITERS,
        readers=READERS,
        begin_migration=lambda: _begin_migration(engine),
        is_passing=is_passing,
        is_down=is_down,
    )


def connect_arguments(url: URL) -> dict[str, Any]:
    """What each connection is opened with besides the URL; what the URL says itself goes first."""
    settings = f"-c timezone=UTC -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION}"
    defaults = {"application_name": "builderd", "connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10}
    chosen = {name: value for name, value in defaults.items() if name not in url.query}
    return {**chosen, "options": f"{settings} {url.query.get('options', '')}".strip()}


def is_passing(error: DBAPIError) -> bool:
    """Whether the transaction met another one, so that it may come through when it is run again."""
    state = getattr(error.orig, "sqlstate", None)
    return state in (SERIALIZATION_FAILURE, DEADLOCK_DETECTED, UNIQUE_VIOLATION)


def is_down(error: DBAPIError) -> bool:
    """Whether there is no connection to be had, or it broke off: class 08, and a server that starts or stops."""
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        # What never reached the server has no state.
        return isinstance(error, OperationalError | InterfaceError)
    return state.startswith("08") or state in (*SHUTTING_DOWN, TOO_MANY_CONNECTIONS)


@contextmanager
def _begin_migration(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        yield connection
