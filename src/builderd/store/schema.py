"""A comparison of the database's schema with the package ``tables``: revision, tables and columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from sqlalchemy import Connection, text

from builderd.store.migrations import revisions
from builderd.store.tables import metadata

VERSION_TABLE = "alembic_version"
#: Faults listed at most; one more entry counts the rest.
MAX_DIFFERENCES = 10

_VERSION = text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608 -- a constant
_COLUMNS = {
    "sqlite": text(
        "SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table'"
    ),
    "postgresql": text(
        "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') "
        "AND a.attnum > 0 AND NOT a.attisdropped"
    ),
}


def differences(connection: Connection) -> list[str]:
    """Return the differences that keep this program from using the schema, with what it expects; [] when none."""
    found: dict[str, set[str]] = {}
    for table, column in connection.execute(_COLUMNS[connection.dialect.name]):
        found.setdefault(table, set()).add(column)
    known = connection.execute(_VERSION).scalars().all() if VERSION_TABLE in found else []
    every = [*_wrong_revision(", ".join(known) or "none"), *_missing(found)]
    more = len(every) - MAX_DIFFERENCES
    return every if more <= 0 else [*every[:MAX_DIFFERENCES], f"and {more} more"]


def foreign_revision(connection: Connection) -> str:
    """Return the revision of a schema that a newer program made, "" for one that this program knows."""
    found = str(connection.execute(_VERSION).scalar_one())
    return "" if found in _revisions() else found


def is_newest(connection: Connection) -> bool:
    """Return True if the schema has the newest revision that this program knows."""
    return str(connection.execute(_VERSION).scalar_one()) == _revisions()[-1]


@cache
def _revisions() -> tuple[str, ...]:
    return tuple(revisions())


def _wrong_revision(found: str) -> Iterator[str]:
    needed = _revisions()[-1]
    if found != needed:
        is_older = found == "none" or found in _revisions()
        hint = "restart the service, which migrates it" if is_older else "a newer builderd made it: use that one"
        yield f"its schema has revision {found}, this program needs {needed} ({hint})"


def _missing(found: Mapping[str, set[str]]) -> Iterator[str]:
    for table in metadata.sorted_tables:
        if table.name not in found:
            yield f"the table {table.name} is missing"
            continue
        for column in table.columns:
            if column.name not in found[table.name]:
                yield f"the column {table.name}.{column.name} is missing"
