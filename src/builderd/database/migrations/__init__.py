"""The history of the schema, and a comparison of a database with the tables of the code.

Each revision is one file in ``versions/``; none changes once it was released. To add one, change the table,
which lies beside its queries, add the file, and let the tests compare both.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from builderd.core.errors import InvalidState
from builderd.database.columns import metadata

#: Differences listed at most; one more entry counts the rest.
MAX_DIFFERENCES = 10
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


@cache
def revisions() -> Sequence[str]:
    """Return the revisions that this program knows, oldest first."""
    found = ScriptDirectory.from_config(_config()).walk_revisions()
    return [one.revision for one in found][::-1]


def _config(**attributes: Any) -> Config:
    config = Config(attributes=attributes)
    config.set_main_option("script_location", "builderd.database:migrations")
    return config


def upgrade(connection: Connection) -> None:
    """Upgrade the schema to the newest revision in the connection's transaction.

    Raises ``InvalidState`` when the schema has a revision that this program does not know.
    """
    if is_made(connection) and (conflict := conflict_with(connection)):
        raise InvalidState(f"{conflict[0].upper()}{conflict[1:]}: use that one, or a later one.")
    with warnings.catch_warnings():
        # Warned of an index on an expression; SQLite keeps it while a table is rebuilt.
        warnings.filterwarnings("ignore", message=".*expression-based index")
        command.upgrade(_config(connection=connection), "head")


def is_made(connection: Connection) -> bool:
    """Return False for an empty database. Raises ``InvalidState`` for a schema from before 1.0."""
    found = _revision_of(connection)
    if found:
        refuse_unreleased(found)
    return bool(found)


def refuse_unreleased(revision: str) -> None:
    """Raise ``InvalidState`` for a revision from before 1.0."""
    if revision < revisions()[0]:
        raise InvalidState(
            f"The database has the schema {revision} of a builderd from before 1.0, which is not upgraded. Begin with "
            "a new data directory (--data-dir) or an empty database (database_url), and create the builders again from "
            "their files; the version that made the database still runs on it."
        )


def is_newest(connection: Connection) -> bool:
    """Return True if the schema has the newest revision that this program knows."""
    return _revision_of(connection) == revisions()[-1]


def conflict_with(connection: Connection) -> str:
    """Return why this program cannot use the schema, "" for a revision that it knows."""
    found = _revision_of(connection)
    return "" if found in revisions() else f"the database has the schema {found}, which a newer builderd made"


def differences(connection: Connection) -> list[str]:
    """Return the differences that keep this program from using the schema, with what it expects; [] when none."""
    present: dict[str, set[str]] = {}
    for table, column in connection.execute(_COLUMNS[connection.dialect.name]):
        present.setdefault(table, set()).add(column)
    found = [*_wrong_revision(_revision_of(connection)), *_missing(present)]
    more = len(found) - MAX_DIFFERENCES
    return found if more <= 0 else [*found[:MAX_DIFFERENCES], f"and {more} more"]


def _revision_of(connection: Connection) -> str:
    """Return the revision of the schema, "" for an empty database."""
    return MigrationContext.configure(connection).get_current_revision() or ""


def _wrong_revision(found: str) -> Iterator[str]:
    needed = revisions()[-1]
    if found != needed:
        is_older = not found or found in revisions()
        hint = "restart the service, which migrates it" if is_older else "another builderd made it: use that one"
        yield f"its schema has revision {found or 'none'}, this program needs {needed} ({hint})"


def _missing(present: Mapping[str, set[str]]) -> Iterator[str]:
    for table in metadata.sorted_tables:
        if table.name not in present:
            yield f"the table {table.name} is missing"
            continue
        for column in table.columns:
            if column.name not in present[table.name]:
                yield f"the column {table.name}.{column.name} is missing"
