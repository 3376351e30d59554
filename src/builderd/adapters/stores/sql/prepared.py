"""Statements by their compiled text: SQLAlchemy renders each once, and the database's driver executes it from then on.

For a row by its key, SQLAlchemy takes ten times as long as SQLite: it looks up the compiled form, makes a context, a
cursor result and its rows. ``PreparedConnection`` does so for a statement's first execution; from the second on it has
the text, the functions by which the columns' types convert parameters and values, and a tuple with the columns' names.
"""

from __future__ import annotations

import re
from collections import defaultdict, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple, NoReturn
from weakref import WeakKeyDictionary

from sqlalchemy import BindParameter, Connection, Delete, Dialect, Engine, Executable, Insert, Integer, Select, Update
from sqlalchemy.exc import MultipleResultsFound, NoResultFound
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.selectable import CompoundSelect
from sqlalchemy.types import TypeEngine

#: Sets of parameters of one statement: a save has one for each set of changed columns.
MAX_FORMS = 200

_Convert = Callable[[Any], Any]
#: Its fields are known only when it runs.
_make_kind: Any = namedtuple
#: Returns a column's conversion, None without one, for the driver's code of the column's type.
_MakeRead = Callable[[Any], _Convert | None]
#: Place of a value that SQLAlchemy writes into the text at each execution (``literal_execute``).
_WRITTEN = re.compile(r"__\[POSTCOMPILE_(\w+)\]")
_KINDS = (Select, CompoundSelect, Insert, Update, Delete)
_NO_VALUES: Mapping[str, Any] = {}


class _Bind(NamedTuple):
    """Value in a statement: that of the parameter of this name, or (None) a fixed one."""

    name: str | None
    fixed: Any
    convert: _Convert | None


#: Executes a statement's text with its values on the driver's connection, and returns the driver's cursor.
Send = Callable[[Any, str, Sequence[Any]], Any]


class Prepared:
    """Text of a statement with these parameters, and the conversions of its values."""

    def __init__(
        self, text: str, binds: Sequence[_Bind], written: Mapping[str, _Convert], columns: Sequence[_MakeRead]
    ) -> None:
        """``binds`` are in the order of the text's parameters.

        ``written`` makes the text of each value that is written into the statement; ``columns`` returns the conversion
        of each column by the driver's code of its type.
        """
        self.text = text
        #: Text, and in turn the name of a value that is written at its end.
        self._parts = _WRITTEN.split(text)
        self._binds = [(bind.name, bind.fixed) for bind in binds]
        self._writes = [(index, bind.convert) for index, bind in enumerate(binds) if bind.convert is not None]
        self._written = written
        self._columns = columns
        self._reads: Sequence[tuple[int, _Convert]] = ()
        self._row: Callable[[Sequence[Any]], Any] | None = None
        self.names: tuple[str, ...] = ()

    def bound(self, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """Return the text, and the values of its parameters."""
        given = [fixed if name is None else values[name] for name, fixed in self._binds]
        for index, convert in self._writes:
            given[index] = convert(given[index])
        if not self._written:
            return self.text, given
        parts = list(self._parts)
        parts[1::2] = [self._written[name](values[name]) for name in parts[1::2]]
        return "".join(parts), given

    def make_row(self, cursor: Any) -> Callable[[Sequence[Any]], Any]:
        """Return what makes a named tuple of a row's converted values. The columns' names are the database's."""
        if self._row is None:
            described = cursor.description
            assert described is not None
            assert len(described) == len(self._columns), self.text
            self.names = tuple(column[0] for column in described)
            reads = [make(column[1]) for make, column in zip(self._columns, described, strict=True)]
            self._reads = [(index, convert) for index, convert in enumerate(reads) if convert is not None]
            self._row = _make_kind("Row", self.names, rename=True)._make
        return self._row

    def converted(self, raw: Sequence[Any]) -> list[Any]:
        values = list(raw)
        for index, convert in self._reads:
            values[index] = convert(values[index])
        return values


class Rows:
    """Result of a prepared statement: the part of SQLAlchemy's ``CursorResult`` that this package uses."""

    __slots__ = ("_connection", "_cursor", "_prepared")

    def __init__(self, connection: PreparedConnection, cursor: Any, prepared: Prepared) -> None:
        self._connection = connection
        self._cursor = cursor
        self._prepared = prepared

    @property
    def rowcount(self) -> int:
        number: int = self._cursor.rowcount
        return number

    @property
    def inserted_primary_key(self) -> tuple[int | None]:
        """Return the key of the row that an INSERT without a key wrote; SQLAlchemy asks PostgreSQL for one."""
        return (self._cursor.lastrowid,)

    def __iter__(self) -> Iterator[Any]:
        make, converted = self._prepared.make_row(self._cursor), self._prepared.converted
        try:
            for raw in self._cursor:
                yield make(converted(raw))
        except self._connection.driver_error as error:
            self._connection.fail(error, self._prepared, self._cursor)

    def all(self) -> list[Any]:
        make, converted = self._prepared.make_row(self._cursor), self._prepared.converted
        try:
            return [make(converted(raw)) for raw in self._cursor.fetchall()]
        except self._connection.driver_error as error:
            self._connection.fail(error, self._prepared, self._cursor)

    def tuples(self) -> Values:
        """Return the rows without their columns' names."""
        self._prepared.make_row(self._cursor)
        converted = self._prepared.converted
        try:
            return Values(tuple(converted(raw)) for raw in self._cursor.fetchall())
        except self._connection.driver_error as error:
            self._connection.fail(error, self._prepared, self._cursor)

    def first(self) -> Any | None:
        make = self._prepared.make_row(self._cursor)
        try:
            raw = self._cursor.fetchone()
        except self._connection.driver_error as error:
            self._connection.fail(error, self._prepared, self._cursor)
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
    """First columns of all rows, or all rows as plain tuples."""

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

    def __init__(self, engine: Engine, send: Send) -> None:
        super().__init__(engine)
        self._send = send
        self._is_observed = False

    def look_for_observers(self) -> None:
        """Notice who listens to executions from now on."""
        self._is_observed = bool(self.dispatch.before_cursor_execute or self.dispatch.after_cursor_execute)

    @cached_property
    def _driver(self) -> Any:
        return self.connection.dbapi_connection

    @property
    def driver_error(self) -> type[Exception]:
        return self.dialect.loaded_dbapi.Error

    def execute(self, statement: Executable, parameters: Any = None, *, execution_options: Any = None) -> Any:
        values = _NO_VALUES if parameters is None else parameters
        if type(values) is dict or values is _NO_VALUES:
            prepared = None if self._is_observed or execution_options else find(statement, tuple(values), self)
            if prepared is not None:
                return self._execute_prepared(prepared, values)
        return super().execute(statement, parameters, execution_options=execution_options)

    def _execute_prepared(self, prepared: Prepared, values: Mapping[str, Any]) -> Rows:
        try:
            return Rows(self, self._send(self._driver, *prepared.bound(values)), prepared)
        except Exception as error:
            self.fail(error, prepared, None)

    def fail(self, error: Exception, prepared: Prepared, cursor: Any) -> NoReturn:
        """Raise the error of SQLAlchemy for one of the driver, or of converting a parameter.

        A connection that broke is not used again, as after any statement of SQLAlchemy.
        """
        self._handle_dbapi_exception(error, prepared.text, None, cursor, None)


@contextmanager
def begin(engine: Engine, send: Send) -> Iterator[Connection]:
    """Open a transaction on a connection that prepares statements."""
    connection = PreparedConnection(engine, send)
    with connection, connection.begin():
        connection.look_for_observers()
        yield connection


class Transactions:
    """Opens transactions on connections that stay open in between: to make one takes as long as two statements."""

    def __init__(self, send: Send) -> None:
        self._send = send
        #: Connections without a transaction, the last used at the end. Several threads use them.
        self._idle: dict[Engine, list[PreparedConnection]] = {}

    @contextmanager
    def begin(self, engine: Engine) -> Iterator[Connection]:
        """Open a transaction. A connection on which anything failed goes back to the engine's pool."""
        idle = self._idle.setdefault(engine, [])
        try:
            connection = idle.pop()
        except IndexError:
            connection = PreparedConnection(engine, self._send)
        try:
            connection.look_for_observers()
            with connection.begin():
                yield connection
        except BaseException:
            connection.close()
            raise
        idle.append(connection)

    def close(self) -> None:
        """Close all connections without a transaction."""
        for idle in self._idle.values():
            while idle:
                idle.pop().close()


#: Forms by dialect, statement and its parameters, None for one that only SQLAlchemy can execute. A statement that was
#: made for one call goes with it. Text and conversions depend on the engine's options, which all of a dialect share
#: (``ENGINE_OPTIONS``).
_forms: Mapping[str, WeakKeyDictionary[Executable, dict[tuple[str, ...], Prepared | None]]] = defaultdict(
    WeakKeyDictionary
)


def find(statement: Executable, names: tuple[str, ...], connection: Connection) -> Prepared | None:
    """Return the statement with these parameters; None at its first execution, and where SQLAlchemy is needed."""
    of_dialect = _forms[connection.dialect.name]
    forms = of_dialect.get(statement)
    if forms is None:
        of_dialect[statement] = {}
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
    if _needs_sqlalchemy(compiled):
        return None
    text, order = _numbered(compiled)
    literals = {compiled.bind_names[bind]: bind for bind in compiled.literal_execute_params}
    binds = [_bind(compiled.binds[name], name, names, dialect) for name in order if name not in literals]
    if None in binds or any(bind.key not in names and bind.required for bind in literals.values()):
        return None
    written = {name: _writer(bind, dialect) for name, bind in literals.items()}
    fixed = {name: bind.value for name, bind in literals.items() if bind.key not in names}
    texts = {name: written.pop(name)(value) for name, value in fixed.items()}
    # Of those that come with the call: a text's backslashes would have to be doubled where they escape.
    assert all(isinstance(literals[name].type, Integer) for name in written), text
    text = _WRITTEN.sub(lambda place: texts.get(place[1], place[0]), text)
    columns = [] if is_write else [_reader(column.type, dialect) for column in statement.exported_columns]
    return Prepared(text, [bind for bind in binds if bind is not None], written, columns)


def _numbered(compiled: SQLCompiler) -> tuple[str, Sequence[str]]:
    """Return the text and the names of its parameters in order: question marks, or ``$1`` for names in the text."""
    if compiled.positiontup is not None:
        return compiled.string, compiled.positiontup
    numbers = _Numbers()
    return compiled.string % numbers, list(numbers)


class _Numbers(dict[str, str]):
    """Number of each name, in the order in which they were asked for."""

    def __missing__(self, name: str) -> str:
        return self.setdefault(name, f"${len(self) + 1}")


def _writer(bind: BindParameter[Any], dialect: Dialect) -> _Convert:
    write = bind.type.dialect_impl(dialect).literal_processor(dialect)
    assert write is not None, bind.key
    # A percent sign is doubled where names are in the text, as the driver would expect it.
    return write if dialect.positional else lambda value: write(value) % ()


def _reader(of: TypeEngine[Any], dialect: Dialect) -> _MakeRead:
    return partial(of.dialect_impl(dialect).result_processor, dialect)


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
