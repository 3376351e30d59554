"""Base of the repositories: queries of one transaction, and rows of one table as values of one dataclass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import Connection, Executable, RowMapping, Table, insert, update

from builderd.store.database import Kind
from builderd.store.types import omit, row_of

T = TypeVar("T")
Id = TypeVar("Id")

#: Ids that one statement asks for: SQLite takes 32,766 parameters, PostgreSQL 65,535.
BATCH = 1_000


class Transaction(NamedTuple):
    """A transaction. One that writes may lock rows; ``written`` collects the kinds of the records that it wrote."""

    connection: Connection
    writes: bool
    written: set[Kind]


class Queries:
    """Queries of one transaction."""

    def __init__(self, transaction: Transaction) -> None:
        self._connection, self._locks, self._written = transaction

    def _scalar(self, statement: Executable, **values: Any) -> Any:
        """Return the first column of the first row, or None."""
        return self._connection.execute(statement, values).scalar()

    def _scalars(self, statement: Executable, **values: Any) -> Sequence[Any]:
        """Return the first column of all rows."""
        return self._connection.execute(statement, values).scalars().all()

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

    def add(self, value: T) -> None:
        """Insert the row of this value."""
        self._note_write()
        self._connection.execute(insert(self._table), self._row(value))

    def save(self, value: T) -> None:
        """Replace the row of this value. Raises ``LookupError`` when there is none."""
        if not self._update(value):
            raise LookupError(f"no row of {self._table.name} to save")

    def _update(self, value: T) -> bool:
        """Replace the row of this value; return False when there is none."""
        self._note_write()
        row = self._row(value)
        is_it = [self._table.c[name] == row[name] for name in self._key]
        # Without the key: an update that sets it makes SQLite visit every row that refers to it.
        return self._change(update(self._table).where(*is_it), **omit(row, *self._key)) == 1

    def _first(self, statement: Executable, **values: Any) -> T | None:
        row = self._connection.execute(statement, values).mappings().first()
        return self._value(row) if row else None

    def _all(self, statement: Executable, **values: Any) -> Sequence[T]:
        return [self._value(row) for row in self._connection.execute(statement, values).mappings()]

    def _note_write(self) -> None:
        if self._kind is not None:
            self._written.add(self._kind)

    def _row(self, value: T) -> dict[str, Any]:
        return row_of(value)  # type: ignore[arg-type]

    def _value(self, row: RowMapping) -> T:
        return self._record(**row)


def batches(ids: Sequence[Id]) -> Iterator[Sequence[Id]]:
    """Yield the ids in groups that one statement can ask for."""
    return (ids[start : start + BATCH] for start in range(0, len(ids), BATCH))
