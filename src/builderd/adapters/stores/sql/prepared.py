"""Statements on SQLite by their compiled text: SQLAlchemy renders each once, and the driver executes it from then on.

For a row by its key, SQLAlchemy takes ten times as long as SQLite: it looks up the compiled form, makes a context, a
cursor result and its rows. ``PreparedConnection`` does so for a statement's first execution; from the second on it has
the text, the functions by which the columns' types convert parameters and values, and a tuple with the columns' names.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import BindParameter, Connection, Delete, Dialect, Engine, Executable, Insert, Select, Update
from sqlalchemy.exc import DBAPIError, MultipleResultsFound, NoResultFound
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.selectable import CompoundSelect

#: Sets of parameters of one statement: a save has one for each set of changed columns.
MAX_FORMS = 200

_Convert = Callable[[Any], Any]
#: Its fields are known only when it runs.
_make_kind: Any = namedtuple
_KINDS = (Select, CompoundSelect, Insert, Update, Delete)
_NO_VALUES: Mapping[str, Any] = {}


class _Bind(NamedTuple):
    """Value in a statement: that of the parameter of this name, or (None) a fixed one."""

    name: str | None
    fixed: Any
    convert: _Convert | None


class Prepared:
    """Text of a statement with these parameters, and the conversions of its values."""

    def __init__(self, text: str, binds: Sequence[_Bind], reads: Sequence[_Convert | None]) -> None:
        """``binds`` are in the order of the text's question marks; ``reads`` has the conversion of each column."""
        self._text = text
        self._binds = [(bind.name, bind.fixed) for bind in binds]
        self._writes = [(index, bind.convert) for index, bind in enumerate(binds) if bind.convert is not None]
        self._reads = [(index, convert) for index, convert in enumerate(reads) if convert is not None]
        self._width = len(reads)
        self._row: Callable[[Sequence[Any]], Any] | None = None
        self.names: tuple[str, ...] = ()

    def execute(self, driver: sqlite3.Connection, values: Mapping[str, Any]) -> Rows:
        given = [fixed if name is None else values[name] for name, fixed in self._binds]
        try:
            for index, convert in self._writes:
                given[index] = convert(given[index])
            return Rows(driver.execute(self._text, given), self)
        except Exception as error:
            raise self.wrapped(error) from error

    def wrapped(self, error: Exception) -> BaseException:
        """Return the error that SQLAlchemy raises for one of the driver, or of converting a parameter."""
        return DBAPIError.instance(self._text, None, error, sqlite3.Error, hide_parameters=True)

    def make_row(self, cursor: sqlite3.Cursor) -> Callable[[Sequence[Any]], Any]:
        """Return what makes a named tuple of a row's converted values. The columns' names are the database's."""
        if self._row is None:
            self.names = tuple(column[0] for column in cursor.description)
            assert len(self.names) == self._width, self._text
            self._row = _make_kind("Row", self.names, rename=True)._make
        return self._row

    def converted(self, raw: Sequence[Any]) -> list[Any]:
        values = list(raw)
        for index, convert in self._reads:
            values[index] = convert(values[index])
        return values


class Rows:
    """Result of a prepared statement: the part of SQLAlchemy's ``CursorResult`` that this package uses."""

    __slots__ = ("_cursor", "_prepared")

    def __init__(self, cursor: sqlite3.Cursor, prepared: Prepared) -> None:
        self._cursor = cursor
        self._prepared = prepared

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def inserted_primary_key(self) -> tuple[int | None]:
        """Return the key of the row that an INSERT without a key wrote."""
        return (self._cursor.lastrowid,)

    def __iter__(self) -> Iterator[Any]:
        make, converted = self._prepared.make_row(self._cursor), self._prepared.converted
        try:
            for raw in self._cursor:
                yield make(converted(raw))
        except sqlite3.Error as error:
            raise self._prepared.wrapped(error) from error

    def all(self) -> list[Any]:
        return list(self)

    def first(self) -> Any | None:
        make = self._prepared.make_row(self._cursor)
        try:
            raw = self._cursor.fetchone()
        except sqlite3.Error as error:
            raise self._prepared.wrapped(error) from error
        self._cursor.close()
        return None if raw is None else make(self._prepared.converted(raw))

    def one(self) -> Any:
        return _only(self.all())

    def scalars(self) -> Values:
        return Values(row[0] for row in self)

    def scalar(self) -> Any:
        row = self.first()
        return None if row is None else row[0]

    def scalar_one(self) -> Any:
        return self.one()[0]

    def mappings(self) -> Mappings:
        return Mappings(self)

    def first_mapping(self) -> dict[str, Any] | None:
        row = self.first()
        return None if row is None else dict(zip(self._prepared.names, row, strict=True))

    def each_mapping(self) -> Iterator[dict[str, Any]]:
        names = None
        for row in self:
            names = names or self._prepared.names
            yield dict(zip(names, row, strict=True))


class Values(list[Any]):
    """First columns of all rows."""

    def all(self) -> list[Any]:
        return self

    def first(self) -> Any | None:
        return self[0] if self else None

    def one(self) -> Any:
        return _only(self)


class Mappings:
    """Rows as dictionaries by the names of their columns."""

    __slots__ = ("_rows",)

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._rows.each_mapping()

    def all(self) -> list[dict[str, Any]]:
        return list(self)

    def first(self) -> dict[str, Any] | None:
        return self._rows.first_mapping()

    def one(self) -> dict[str, Any]:
        found: dict[str, Any] = _only(self.all())
        return found


class PreparedConnection(Connection):
    """Connection of SQLAlchemy that executes statements by their text from the second time on.

    Where executions are listened to, as in tests, SQLAlchemy does all of them.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._is_observed = bool(self.dispatch.before_cursor_execute or self.dispatch.after_cursor_execute)

    @cached_property
    def _driver(self) -> sqlite3.Connection:
        driver = self.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection)
        return driver

    def execute(self, statement: Executable, parameters: Any = None, *, execution_options: Any = None) -> Any:
        values = _NO_VALUES if parameters is None else parameters
        if type(values) is dict or values is _NO_VALUES:
            prepared = None if self._is_observed or execution_options else find(statement, tuple(values), self)
            if prepared is not None:
                return prepared.execute(self._driver, values)
        return super().execute(statement, parameters, execution_options=execution_options)


@contextmanager
def begin(engine: Engine) -> Iterator[Connection]:
    """Open a transaction on a connection that prepares statements."""
    with PreparedConnection(engine) as connection, connection.begin():
        yield connection


#: Forms by statement and its parameters, None for one that only SQLAlchemy can execute. A statement that was made for
#: one call goes with it.
_forms: WeakKeyDictionary[Executable, dict[tuple[str, ...], Prepared | None]] = WeakKeyDictionary()


def find(statement: Executable, names: tuple[str, ...], connection: Connection) -> Prepared | None:
    """Return the statement with these parameters; None at its first execution, and where SQLAlchemy is needed."""
    forms = _forms.get(statement)
    if forms is None:
        _forms[statement] = {}
        return None
    try:
        return forms[names]
    except KeyError:
        if len(forms) < MAX_FORMS:
            forms[names] = _prepare(statement, names, connection)
        return forms.get(names)


def _prepare(statement: Executable, names: tuple[str, ...], connection: Connection) -> Prepared | None:
    if not isinstance(statement, _KINDS):
        return None
    dialect = connection.dialect
    is_write = isinstance(statement, Insert | Update | Delete)
    compiled = statement.compile(dialect=dialect, column_keys=list(names) if is_write else None)
    assert isinstance(compiled, SQLCompiler)
    if _needs_sqlalchemy(compiled) or compiled.positiontup is None:
        return None
    binds = [_bind(compiled.binds[name], name, names, dialect) for name in compiled.positiontup]
    if None in binds:
        return None
    columns = [] if is_write else [column.type for column in statement.exported_columns]
    reads = [one.dialect_impl(dialect).result_processor(dialect, None) for one in columns]
    return Prepared(compiled.string, [bind for bind in binds if bind is not None], reads)


def _bind(bind: BindParameter[Any], name: str, given: tuple[str, ...], dialect: Dialect) -> _Bind | None:
    """Return the parameter as it is bound; None if its value is lacking, or made by a function."""
    convert = bind.type.dialect_impl(dialect).bind_processor(dialect)
    for key in (bind.key, name):
        if key in given:
            return _Bind(key, None, convert)
    return None if bind.required or bind.callable else _Bind(None, bind.value, convert)


def _needs_sqlalchemy(compiled: SQLCompiler) -> bool:
    """Return True if the text depends on the values, or the database or Python fills columns in."""
    return bool(
        compiled.post_compile_params
        or compiled.literal_execute_params
        or compiled.insert_prefetch
        or compiled.update_prefetch
        or compiled.effective_returning
    )


def _only(rows: Sequence[Any]) -> Any:
    if not rows:
        raise NoResultFound("No row was found when one was required")
    if len(rows) > 1:
        raise MultipleResultsFound("Multiple rows were found when exactly one was required")
    return rows[0]
