"""A database copied into one file of SQLite, and back into a database of either kind.

One format for both: what was taken of PostgreSQL can be brought back to SQLite, and the other way round.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import BigInteger, Connection, Engine, func, insert, make_url, select, text
from sqlalchemy.exc import DBAPIError

from builderd.adapters.stores.sql.database import Database
from builderd.adapters.stores.sql.database_lease import DatabaseLeases
from builderd.adapters.stores.sql.migrations import revisions, upgrade
from builderd.adapters.stores.sql.postgresql import open_postgresql
from builderd.adapters.stores.sql.sqlite import open_sqlite
from builderd.adapters.stores.sql.tables import database_lease, metadata
from builderd.domain.backups import BackupStatus
from builderd.domain.builders import Status
from builderd.domain.database_lease import DatabaseOwned, Instance, describe_owner, needed_silence
from builderd.domain.errors import InvalidState, StoreUnavailable
from builderd.domain.versions import VersionStatus
from builderd.linux.durable import sync

#: Rows that are in memory at a time.
BATCH = 1000
_BUNDLES = f"""
    SELECT bundle_hash FROM versions JOIN builders ON builders.id = versions.builder_id
    WHERE versions.status != '{VersionStatus.DROPPED}' AND builders.status != '{Status.DELETED}'
    UNION SELECT bundle_hash FROM versions JOIN backups
    ON backups.builder_id = versions.builder_id AND backups.version = versions.number
    WHERE backups.status != '{BackupStatus.FAILED}'
"""  # noqa: S608 -- words of ours
#: Where the vault's secrets lie: column by table.
_SEALED = {"credentials": "sealed", "webhooks": "secret", "backup_keys": "sealed"}
_BESIDE = ("-wal", "-shm", "-journal")


def file_of(url: str) -> Path | None:
    """Where a database of SQLite lies; None for one of PostgreSQL."""
    parsed = make_url(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


def save(url: str, target: Path) -> str:
    """Copy what is there at one moment; the revision of its schema. A service may work on it meanwhile.

    The answers that retries get are left out, and so is the lease: a copy belongs to nobody.

    Raises ``InvalidState`` where there is no database, or it has another schema than this program
    (PostgreSQL only), ``StoreUnavailable`` when it does not answer.
    """
    source = file_of(url)
    target.touch(mode=0o600)
    if source is None:
        _save_postgresql(url, target)
    else:
        _save_sqlite(source, target)
    with closing(sqlite3.connect(target)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
    found = revision(target)
    _forget_answers(target)
    _forget_lease(target)
    sync(target)
    return found


def _forget_answers(copy: Path) -> None:
    """They hold service tokens. A retry whose key is known gets its answer from the builder's row then."""
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("PRAGMA secure_delete = ON")  # leave nothing of them in the file
        connection.execute("UPDATE idempotency SET status = NULL, headers = NULL, body = NULL")
        connection.commit()


def _forget_lease(copy: Path) -> None:
    with closing(sqlite3.connect(copy)) as connection:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'database_lease'").fetchone():
            connection.execute("DELETE FROM database_lease")
            connection.commit()


def revision(file: Path) -> str:
    """Of the schema of a copy. Raises ``InvalidState`` for one that is damaged or was made by a newer program."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        try:
            if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                raise InvalidState(f"{file} is damaged.")
            ((found,),) = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        except (sqlite3.DatabaseError, ValueError) as error:
            raise InvalidState(f"{file} is no database of builderd: {error}.") from None
    if found not in revisions():
        raise InvalidState(f"The schema {found} was made by a newer builderd: use that one, or a later one.")
    return str(found)


def bundles_in(file: Path) -> frozenset[str]:
    """The bundles that a copy refers to: without them it is not whole."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        return frozenset(name for (name,) in connection.execute(_BUNDLES))


def sealed_in(file: Path) -> Sequence[bytes]:
    """Every secret that a copy holds, sealed. A schema from before there were such secrets holds none of them."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        questions = [f"SELECT {column} FROM {table}" for table, column in _SEALED.items() if table in tables]  # noqa: S608
        return [sealed for question in questions for (sealed,) in connection.execute(question)]


def holds_something(url: str) -> bool:
    """Whether there is a database that is in use."""
    source = file_of(url)
    if source is not None:
        return source.exists()
    with _postgresql(url) as engine, engine.connect() as connection:
        if connection.execute(text("SELECT to_regclass('tenants')")).scalar_one() is None:
            return False
        return connection.execute(text("SELECT EXISTS (SELECT FROM tenants)")).scalar_one() is True


def bring_back(file: Path, url: str, instance: Instance) -> None:
    """Make it the database, owned by this instance. ``file`` is used up; it happens all at once.

    The database must hold nothing. Raises ``DatabaseOwned`` when another service works on it all the same.
    """
    target = file_of(url)
    if target is None:
        _fill_postgresql(file, url, instance)
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for ending in _BESIDE:  # of a database that is gone: they would be taken for this one's
        target.with_name(target.name + ending).unlink(missing_ok=True)
    file.chmod(0o600)
    file.rename(target)
    sync(target.parent)


# SQLite


def _save_sqlite(source: Path, target: Path) -> None:
    if not source.exists():
        raise InvalidState(f"There is no database {source}.")
    try:
        with closing(sqlite3.connect(source, timeout=30)) as old, closing(sqlite3.connect(target)) as new:
            old.backup(new)
    except sqlite3.OperationalError as error:
        raise StoreUnavailable(f"The database {source} cannot be copied now: {error}.") from None


# PostgreSQL


@contextmanager
def _postgresql(url: str) -> Iterator[Engine]:
    database = open_postgresql(make_url(url))
    try:
        yield database.writing
    except DBAPIError as error:
        if fault := database.why_down(error):
            raise StoreUnavailable(f"The database cannot be copied now: {fault}.") from error
        raise
    finally:
        database.writing.dispose()


def _save_postgresql(url: str, target: Path) -> None:
    database, copy = open_postgresql(make_url(url)), open_sqlite(make_url(f"sqlite+pysqlite:///{target}"))
    try:
        with database.reading.begin() as source:
            _refuse_other_schema(source)
            _migrate(copy)
            with copy.writing.begin() as filled:
                _pour(source, filled)
    except DBAPIError as error:
        if fault := database.why_down(error):
            raise StoreUnavailable(f"The database cannot be copied now: {fault}.") from error
        raise
    finally:
        for engine in (database.writing, copy.writing, copy.reading):
            engine.dispose()


def _refuse_other_schema(source: Connection) -> None:
    known = source.execute(text("SELECT to_regclass('alembic_version')")).scalar_one()
    found = source.execute(text("SELECT version_num FROM alembic_version")).scalar_one() if known else None
    if found != revisions()[-1]:
        raise InvalidState(f"The database has the schema {found}, not that of this program: run builderd serve first.")


def _fill_postgresql(file: Path, url: str, instance: Instance) -> None:
    """In one transaction, so that it holds all of it or nothing."""
    database, copy = open_postgresql(make_url(url)), open_sqlite(make_url(f"sqlite+pysqlite:///{file}"))
    try:
        _migrate(copy)
        _migrate(database)
        with copy.reading.begin() as source, database.writing.begin() as filled:
            _own(filled, instance)
            _pour(source, filled)
            _count_on(filled)
    finally:
        for engine in (database.writing, copy.writing, copy.reading):
            engine.dispose()


def _own(filled: Connection, instance: Instance) -> None:
    """Take the lease on the empty database, so that no other service begins to work on it."""
    leases = DatabaseLeases(filled)
    lease = leases.get()
    silence = needed_silence(lease, instance, take_over=True) if lease else 0.0
    if lease is not None and (silence is None or lease.age < silence):
        raise DatabaseOwned(f"The database belongs to {describe_owner(lease)}: stop it, or name another database.")
    taken = leases.take(instance, lease)
    assert taken is not None, "nobody has changed it in this transaction"
    leases.release(taken.term)


def _migrate(database: Database) -> None:
    with database.begin_migration() as connection:
        upgrade(connection)


def _pour(source: Connection, target: Connection) -> None:
    """Every row of every table but the lease; those that others point to come first."""
    for table in metadata.sorted_tables:
        if table is database_lease:
            continue
        rows = source.execution_options(yield_per=BATCH).execute(select(table)).mappings()
        for batch in rows.partitions(BATCH):
            target.execute(insert(table), [dict(row) for row in batch])


def _count_on(target: Connection) -> None:
    """Let PostgreSQL count on from the highest number of each table, which it did not draw itself."""
    for table in metadata.sorted_tables:
        for column in table.primary_key:
            name = target.execute(select(func.pg_get_serial_sequence(table.name, column.name))).scalar_one()
            if name is None or not isinstance(column.type, BigInteger):
                continue
            highest = target.execute(select(func.max(column))).scalar_one()
            if highest is not None:
                target.execute(select(func.setval(name, highest)))
