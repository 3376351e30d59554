"""Counts the SQL statements of a store, to see that they do not grow with what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from builderd.database.unit_of_work import Store


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """Collect the statements that the store executes meanwhile."""
    database, seen = store._database, list[str]()
    # In memory, reads use the engine of the writes.
    engines = {id(one.pool): one for one in (database.reading, database.writing)}.values()

    def collect(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    for engine in engines:
        event.listen(engine, "before_cursor_execute", collect)
    try:
        yield seen
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", collect)
