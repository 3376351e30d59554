"""Base of the repositories: queries of one transaction, and rows of one table as values of one dataclass.

Rows whose values cannot be decoded, as after a fault of the disk, cost their builder alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import (
    Connection,
    Executable,
    RowMapping,
    Select,
    Table,
    insert,
    select,
    update,
)

from builderd.core.errors import RecordDamaged
from builderd.database.connection import Kind
from builderd.database.types import omit, row_of

T = TypeVar("T")
Id = TypeVar("Id")

#: Ids that one statement asks for: SQLite takes 32,766 parameters, PostgreSQL 65,535.
BATCH = 1_000


class Transaction(NamedTuple):
    """A transaction. One that writes may lock rows; ``written`` collects the kinds of the records that it wrote."""

    connection: Connection
    writes: bool
    written: set[Kind | None]


class Queries:
    """Queries of one transaction."""

    def __init__(self, transaction: Transaction) -> None:
        self._connection, self._locks, self._written = transaction

    def _change(self, statement: Executable, **values: Any) -> int:
        """Run a statement that changes rows; return their number."""
        return self._connection.execute(statement, values).rowcount


class Repository(Queries, Generic[T]):
    """Rows of ``_table`` as values of the dataclass ``_record``. ``_key`` names the columns of the key."""

    _table: Table
    _record: Callable[..., T]
    _key: tuple[str, ...] = ("id",)
    #: Kind of record that waits for changes of this table.
    _kind: Kind | None = None
    #: Whether ``save`` passes over a value whose row was deleted meanwhile.
    _may_be_gone = False

    def add(self, value: T) -> None:
        """Insert the row of this value."""
        self._written.add(self._kind)
        self._connection.execute(insert(self._table), self._row(value))

    def save(self, value: T) -> None:
        """Replace the row of this value. Raises ``LookupError`` when there is none, unless it may be gone."""
        if not self._update(value) and not self._may_be_gone:
            raise LookupError(f"no row of {self._table.name} to save")

    def _update(self, value: T) -> bool:
        """Replace the row of this value; return False when there is none."""
        self._written.add(self._kind)
        row = self._row(value)
        is_it = [self._table.c[name] == row[name] for name in self._key]
        # Without the key: an update that sets it makes SQLite visit every row that refers to it.
        return self._change(update(self._table).where(*is_it), **omit(row, *self._key)) == 1

    def _first(self, statement: Executable, **values: Any) -> T | None:
        row = self._connection.execute(statement, values).mappings().first()
        return self._value(row) if row else None

    def _all(self, statement: Executable, **values: Any) -> Sequence[T]:
        return [self._value(row) for row in self._connection.execute(statement, values).mappings()]

    def _row(self, value: T) -> dict[str, Any]:
        return row_of(value)  # type: ignore[arg-type]

    def _value(self, row: RowMapping) -> T:
        return self._record(**row)


def batches(ids: Sequence[Id]) -> Iterator[Sequence[Id]]:
    """Yield the ids in groups that one statement can ask for."""
    return (ids[start : start + BATCH] for start in range(0, len(ids), BATCH))


log = logging.getLogger(__name__)

#: Errors of decoding a value: a word that is none, JSON that is none, a time or a number that is none.
UNDECODABLE = (LookupError, ValueError, TypeError, ArithmeticError)
#: Seconds between two log lines about the same builder.
LOG_INTERVAL = 300.0
_logged: dict[str, float] = {}


@contextmanager
def damage_named(builder: str | Callable[[], str]) -> Iterator[None]:
    """Raise ``RecordDamaged`` for a row of this builder that cannot be decoded."""
    try:
        yield
    except UNDECODABLE as error:
        found = builder if isinstance(builder, str) else builder()
        if (now := time.monotonic()) >= _logged.get(found, 0.0):
            _logged[found] = now + LOG_INTERVAL
            log.error("record damaged builder=%s error=%s remedy=%s", found, error, RecordDamaged.REMEDY)  # noqa: TRY400
        raise RecordDamaged(found) from error


def read_each(
    connection: Connection,
    statement: Select[Any],
    values: Mapping[str, Any],
    read: Callable[[Any], T],
    builder: str | int = "id",
) -> Sequence[T]:
    """Return the values of all rows that can be decoded; of each other one the log names the builder.

    ``builder`` is the name or the place of the column with its id.
    """
    try:
        # All rows first: a cursor that an error leaves open would keep its connection at this snapshot.
        return [read(row) for row in connection.execute(statement, values).all()]
    except UNDECODABLE:
        rows = statement.subquery()
        ids = connection.scalars(select(rows.c[builder]).distinct(), values).all()
    damaged = []
    for one in ids:
        with suppress(RecordDamaged), damage_named(one):
            for row in connection.execute(select(rows).where(rows.c[builder] == one), values).all():
                read(row)
            continue
        damaged.append(one)
    kept = select(rows).where(rows.c[builder].not_in(damaged))
    return [read(row) for row in connection.execute(kept, values).all()]
