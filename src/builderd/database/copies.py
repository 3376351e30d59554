"""Copies of the database as one SQLite file, and restores of a copy into SQLite or PostgreSQL.

Both kinds share the format: a copy of PostgreSQL can be restored into SQLite, and the other way round.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import BigInteger, Connection, func, insert, make_url, select, text
from sqlalchemy.exc import DBAPIError

from builderd.backups.model import BackupStatus
from builderd.builders.model import Status
from builderd.code.store import bundle_chunks, stored_bundles, upload_chunks
from builderd.core.errors import InvalidState, StoreUnavailable
from builderd.core.members import DatabaseOwned, Instance, describe_owner, needed_silence
from builderd.database.columns import metadata
from builderd.database.connection import Database
from builderd.database.lease import DatabaseLeases, database_lease, services
from builderd.database.migrations import refuse_unreleased, revisions, upgrade
from builderd.database.postgresql import open_postgresql
from builderd.database.repository import Transaction
from builderd.database.sqlite import open_sqlite
from builderd.database.unit_of_work import Store  # noqa: F401 -- with it come the tables of all nouns
from builderd.linux.atomic_files import sync
from builderd.versions.model import VersionStatus

#: Rows held in memory at a time.
BATCH = 1000
_BUNDLES = f"""
    SELECT bundle_hash FROM versions JOIN builders ON builders.id = versions.builder_id
    WHERE versions.status != '{VersionStatus.DROPPED}' AND builders.status != '{Status.DELETED}'
    UNION SELECT bundle_hash FROM versions JOIN backups
    ON backups.builder_id = versions.builder_id AND backups.version = versions.number
    WHERE backups.status != '{BackupStatus.FAILED}'
"""  # noqa: S608 -- constants only
#: Columns of secrets sealed by the vault, by table.
_SEALED = {
    "credentials": "sealed",
    "webhooks": "secret",
    "backup_keys": "sealed",
    "domains": "certificate",
    "acme_accounts": "key",
    "wildcard_certificates": "certificate",
}
#: A copy has no owner and no standby, and a backup keeps the bundles in files, and no uploads.
_NOT_COPIED = (database_lease, services, stored_bundles, bundle_chunks, upload_chunks)
_BESIDE = ("-wal", "-shm", "-journal")


def file_of(url: str) -> Path | None:
    """Return the file of a SQLite database, None for a PostgreSQL URL."""
    parsed = make_url(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


def save(url: str, target: Path) -> str:
    """Copy one snapshot of the database into ``target`` and return its schema revision.

    A service may use the database meanwhile. The copy leaves out the responses stored for idempotency keys, the
    sessions of the web pages, and the database lease: a copy has no owner.

    Raises ``InvalidState`` when there is no database or (PostgreSQL only) its schema is not this program's, and
    ``StoreUnavailable`` when the database does not answer.
    """
    source = file_of(url)
    target.touch(mode=0o600)
    if source is None:
        _save_postgresql(url, target)
    else:
        _save_sqlite(source, target)
    with closing(sqlite3.connect(target)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # a single file, without -wal and -shm
    found = revision(target)
    _forget(target)
    sync(target)
    return found


def _forget(copy: Path) -> None:
    """Delete what a copy must not bring back: see ``save``.

    The responses stored for idempotency keys contain service tokens: a retry with a known key is then answered from
    the builder's row.
    """
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("PRAGMA secure_delete = ON")  # overwrite the deleted bytes
        connection.execute("UPDATE idempotency SET status = NULL, headers = NULL, body = NULL")
        for table in ("database_lease", "sessions", "sign_in_links"):
            connection.execute(f"DELETE FROM {table}")  # noqa: S608
        connection.commit()


def revision(file: Path) -> str:
    """Return the schema revision of a copy.

    Raises ``InvalidState`` when the file is damaged, is no database of builderd, or was made by a newer program.
    """
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        try:
            if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                raise InvalidState(f"{file} is damaged.")
            ((found,),) = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        except (sqlite3.DatabaseError, ValueError) as error:
            raise InvalidState(f"{file} is no database of builderd: {error}.") from None
    refuse_unreleased(found)
    if found not in revisions():
        raise InvalidState(f"The schema {found} was made by a newer builderd: use that one, or a later one.")
    return str(found)


def bundles_in(file: Path) -> frozenset[str]:
    """Return the hashes of the bundles that a copy refers to and needs to be complete."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        return frozenset(name for (name,) in connection.execute(_BUNDLES))


def sealed_in(file: Path) -> Sequence[bytes]:
    """Return every sealed secret in a copy."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        questions = [f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL" for table, column in _SEALED.items()]  # noqa: S608
        return [sealed for question in questions for (sealed,) in connection.execute(question)]


def has_content(url: str) -> bool:
    """Return True when the database is in use: the SQLite file has tables, or PostgreSQL has at least one tenant."""
    source = file_of(url)
    if source is not None:
        return source.exists() and not _is_empty(source)
    with _opened(url) as (database,), database.reading.connect() as connection:
        if connection.execute(text("SELECT to_regclass('tenants')")).scalar_one() is None:
            return False
        return connection.execute(text("SELECT EXISTS (SELECT FROM tenants)")).scalar_one() is True


def _is_empty(file: Path) -> bool:
    """Return True for a database without tables, such as a service leaves that refused to begin with one."""
    with closing(sqlite3.connect(file)) as connection:
        try:
            return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None
        except sqlite3.DatabaseError:
            return False


def restore_copy(file: Path, url: str, instance: Instance) -> None:
    """Restore the copy ``file`` into the empty database at ``url``, atomically.

    Uses up ``file``: it becomes the SQLite database, or is migrated and copied into PostgreSQL. On PostgreSQL the
    lease then names this instance, and ``DatabaseOwned`` is raised when another service holds it.
    """
    target = file_of(url)
    if target is None:
        _fill_postgresql(file, url, instance)
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for ending in _BESIDE:  # left by a deleted database: SQLite would apply them to the new file
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
def _opened(*urls: str) -> Iterator[Sequence[Database]]:
    """Yield databases, and dispose of their connections. Raises ``StoreUnavailable`` for a fault of one of them."""
    databases = [
        open_sqlite(make_url(url)) if url.startswith("sqlite") else open_postgresql(make_url(url)) for url in urls
    ]
    try:
        yield databases
    except DBAPIError as error:
        if reason := databases[0].outage_reason(error):
            raise StoreUnavailable(f"The database cannot be copied now: {reason}.") from error
        raise
    finally:
        for database in databases:
            for engine in (database.writing, database.reading):
                engine.dispose()


def _save_postgresql(url: str, target: Path) -> None:
    with _opened(url, f"sqlite+pysqlite:///{target}") as (database, copy), database.reading.begin() as source:
        _refuse_other_schema(source)
        _migrate(copy)
        with copy.writing.begin() as filled:
            _copy_rows(source, filled)


def _refuse_other_schema(source: Connection) -> None:
    known = source.execute(text("SELECT to_regclass('alembic_version')")).scalar_one()
    found = source.execute(text("SELECT version_num FROM alembic_version")).scalar_one() if known else None
    if found != revisions()[-1]:
        raise InvalidState(f"The database has the schema {found}, not that of this program: run builderd serve first.")


def _fill_postgresql(file: Path, url: str, instance: Instance) -> None:
    """Copy all rows in one transaction, so that the database holds all of them or none."""
    with _opened(url, f"sqlite+pysqlite:///{file}") as (database, copy):
        _migrate(copy)
        _migrate(database)
        with copy.reading.begin() as source, database.writing.begin() as filled:
            _own(filled, instance)
            _copy_rows(source, filled)
            _count_on(filled)


def _own(filled: Connection, instance: Instance) -> None:
    """Take the lease on the empty database, so that no other service starts on it. Raises ``DatabaseOwned``."""
    leases = DatabaseLeases(Transaction(filled, writes=True, written=set()))
    lease = leases.get()
    silence = needed_silence(lease, instance, take_over=True) if lease else 0.0
    if lease is not None and (silence is None or lease.age < silence):
        raise DatabaseOwned(f"The database belongs to {describe_owner(lease)}: stop it, or name another database.")
    taken = leases.take(instance, lease)
    assert taken is not None, "no other statement of this transaction changed it"
    leases.release(taken.term)


def _migrate(database: Database) -> None:
    with database.begin_migration() as connection:
        upgrade(connection)


def _copy_rows(source: Connection, target: Connection) -> None:
    """Copy every row of every table but ``_NOT_COPIED``, in foreign key order, ``BATCH`` rows at a time."""
    for table in metadata.sorted_tables:
        if table in _NOT_COPIED:
            continue
        rows = source.execution_options(yield_per=BATCH).execute(select(table)).mappings()
        for batch in rows.partitions(BATCH):
            # By key: a column's name in the database may be an older word than its field's.
            target.execute(insert(table), [{column.key: row[column] for column in table.c} for row in batch])


def _count_on(target: Connection) -> None:
    """Set each PostgreSQL sequence to the highest id copied, since copied ids do not advance it."""
    for table in metadata.sorted_tables:
        for column in table.primary_key:
            name = target.execute(select(func.pg_get_serial_sequence(table.name, column.name))).scalar_one()
            if name is None or not isinstance(column.type, BigInteger):
                continue
            highest = target.execute(select(func.max(column))).scalar_one()
            if highest is not None:
                target.execute(select(func.setval(name, highest)))
