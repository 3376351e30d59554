"""Databases with an old schema and rows in it, for tests of upgrades."""

from __future__ import annotations

import sqlite3
import warnings
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, MetaData, insert, make_url, select

from builderd.store.migrations import upgrade
from builderd.store.postgresql import open_postgresql
from builderd.store.sqlite import open_sqlite

STORED = Path(__file__).parent
VERSION_TABLE = "alembic_version"


def load(revision: str, file: Path) -> None:
    """Make the SQLite file what a service of that revision has left."""
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript((STORED / revision / "builderd.sql").read_text())


def downgrade(file: Path, revision: str) -> None:
    """Give a SQLite database this older schema; its rows lose the columns and tables that came later."""
    old = file.with_suffix(".old")
    copy(file, f"sqlite:///{old}", revision)
    for ending in ("-wal", "-shm"):
        file.with_name(file.name + ending).unlink(missing_ok=True)
    old.rename(file)


def copy(file: Path, url: str, revision: str) -> None:
    """Fill an empty database with the rows of a SQLite file, on the schema of this revision."""
    source = open_sqlite(make_url(f"sqlite+pysqlite:///{file}"))
    parsed = make_url(url)
    is_file = parsed.get_backend_name() == "sqlite"
    target = open_sqlite(parsed.set(drivername="sqlite+pysqlite")) if is_file else open_postgresql(parsed)
    try:
        with target.begin_migration() as connection:
            upgrade(connection, revision)
        with source.reading.begin() as left, target.writing.begin() as right:
            _pour(left, right)
    finally:
        for engine in (source.writing, source.reading, target.writing, target.reading):
            engine.dispose()


def _pour(source: Connection, target: Connection) -> None:
    """Copy every row of each table that both have, with the columns that both have."""
    left, right = MetaData(), MetaData()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*expression-based index")
        left.reflect(source)
        right.reflect(target)
    for table in right.sorted_tables:
        if table.name == VERSION_TABLE or table.name not in left.tables:
            continue
        old = left.tables[table.name]
        names = [column.name for column in table.columns if column.name in old.columns]
        rows = source.execute(select(*(old.columns[name] for name in names))).mappings().all()
        if rows:
            target.execute(insert(table), [dict(row) for row in rows])
