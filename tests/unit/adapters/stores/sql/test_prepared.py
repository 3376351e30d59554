"""Statements by their compiled text give what SQLAlchemy gives, with the errors of the same kinds."""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    Executable,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    bindparam,
    case,
    create_engine,
    delete,
    event,
    exists,
    func,
    insert,
    literal,
    literal_column,
    make_url,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError, MultipleResultsFound, NoResultFound, OperationalError, StatementError

from builderd.adapters.stores.sql import prepared
from builderd.adapters.stores.sql.database import Database
from builderd.adapters.stores.sql.postgresql import open_postgresql
from builderd.adapters.stores.sql.prepared import PreparedConnection, Rows, Transactions
from builderd.adapters.stores.sql.sqlite import open_sqlite
from builderd.adapters.stores.sql.types import ExactDecimal, ForeignText, UtcDateTime, enum_column
from builderd.domain.builders import Status

NOW = datetime(2026, 11, 30, 10, 24, 0, 123456, UTC)
things = Table(
    "things",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("at", UtcDateTime),
    Column("status", enum_column(Status)),
    Column("price", ExactDecimal),
    Column("open", Boolean),
    Column("tags", JSON(none_as_null=True)),
    Column("share", Double),
    Column("content", LargeBinary),
    Column("said", ForeignText),
    Column("other_name", Integer, key="number"),
)
#: Their ids are 1 and 2.
FULL = {
    "name": "full",
    "at": NOW,
    "status": Status.RUNNING,
    "price": Decimal("0.1000"),
    "open": True,
    "tags": ["a", {"b": None}],
    "share": 0.25,
    "content": b"\0\xff",
    "said": "a\0b",
    "number": 7,
}
EMPTY = {**dict.fromkeys(FULL), "name": "empty"}

_others = things.alias()
_ALL = select(things).order_by(things.c.id)
_ONE = _ALL.where(things.c.id == bindparam("which"))
_OF_STATES = _ONE.where(things.c.status.in_([Status.RUNNING, Status.STOPPED]), things.c.at.in_([NOW]))
_KINDS: dict[str, tuple[Executable, dict[str, Any] | None]] = {
    "columns of each type": (_ALL, None),
    "a row by its key": (_ONE, {"which": 1}),
    "no row": (_ONE, {"which": 9}),
    "values in the statement": (_ALL.where(things.c.status == Status.RUNNING, things.c.at <= NOW), {}),
    "a parameter with a type": (_ALL.where(things.c.at <= bindparam("at", type_=UtcDateTime)), {"at": NOW}),
    "a parameter twice": (
        _ALL.where((things.c.name == bindparam("a")) | (things.c.said == bindparam("a"))),
        {"a": "full"},
    ),
    "a default of a parameter": (_ALL.where(things.c.id == bindparam("which", 2)), {}),
    "columns of one name": (select(things.c.id, _others.c.id).where(things.c.id == _others.c.id), {}),
    "functions": (select(func.count(), func.max(things.c.at), func.coalesce(func.sum(things.c.share), 0.0)), {}),
    "a case": (select(case((things.c.open, things.c.price), else_=None).label("paid")).order_by(things.c.id), {}),
    "a union": (union_all(select(things.c.id, things.c.at), select(literal(3), literal(NOW, UtcDateTime))), {}),
    "exists": (select(exists().where(things.c.id == bindparam("which"))), {"which": 2}),
    "a value that is written into the text": (
        _ALL.where(things.c.share < bindparam("share")).limit(bindparam("limit", type_=Integer, literal_execute=True)),
        {"limit": 1, "share": 9.5},
    ),
    "a fixed value that is written into the text": (
        select(func.coalesce(things.c.said, literal("%s ?", literal_execute=True))).order_by(things.c.id),
        {},
    ),
    "a percent sign": (
        _ALL.where(things.c.name.like("%ul%"), literal_column("7 % 5") == bindparam("rest")),
        {"rest": 2},
    ),
    "a limit": (_ALL.limit(bindparam("limit")), {"limit": 1}),
    "a list of values": (_ALL.where(things.c.id.in_(bindparam("ids", expanding=True))), {"ids": [1, 2]}),
    "a fixed list": (_ALL.where(things.c.id.in_([1, 2])), {}),
    "a fixed list that is empty": (_ALL.where(things.c.id.in_([])), {}),
    "a fixed list of a type, and a parameter": (_OF_STATES, {"which": 1}),
    "joined text": (
        select(func.aggregate_strings(things.c.name, ", ")).where(things.c.id < bindparam("id")),
        {"id": 9},
    ),
    "text": (text("SELECT id, name FROM things ORDER BY id"), {}),
}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    is_sqlite = request.param == "sqlite"
    url = make_url(f"sqlite:///{tmp_path}/things.db" if is_sqlite else request.getfixturevalue("postgres_url"))
    made = open_sqlite(url) if is_sqlite else open_postgresql(url)
    with made.writing.begin() as connection:
        things.create(connection)
        connection.execute(insert(things), [FULL, EMPTY])
    yield made
    made.writing.dispose()
    made.reading.dispose()


sqlite_alone = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with database.begin(database.writing) as opened:
        yield opened


@pytest.mark.parametrize(
    ("kind", "is_prepared"),
    [
        ("a row by its key", True),
        ("a fixed list of a type, and a parameter", False),
        ("joined text", True),
        ("a list of values", False),
        ("text", False),
    ],
)
def test_built_statements_without_lists_are_prepared(connection: Connection, kind: str, is_prepared: bool) -> None:
    statement, values = _KINDS[kind]
    for _ in range(2):
        connection.execute(statement, values)
    assert (prepared.find(statement, tuple(values or ()), connection) is not None) is is_prepared


def test_a_fixed_list_that_is_given_after_all_is_used(connection: Connection) -> None:
    statement = _ALL.where(things.c.id.in_(bindparam("ids", [1], expanding=True)))
    for ids in ([1], [2], [1, 2], []):
        assert [row.id for row in connection.execute(statement, {"ids": ids})] == ids
        assert [row.id for row in connection.execute(statement)] == [1]


@pytest.mark.parametrize(("statement", "values"), _KINDS.values(), ids=list(_KINDS))
def test_each_execution_gives_the_same(
    database: Database, connection: Connection, statement: Executable, values: dict[str, Any] | None
) -> None:
    with database.reading.begin() as other:
        rows = [tuple(row) for row in other.execute(statement, values)]
        mappings = [dict(row) for row in other.execute(statement, values).mappings()]
    for _ in range(3):
        assert [tuple(row) for row in connection.execute(statement, values)] == rows
        assert [tuple(row) for row in connection.execute(statement, values).all()] == rows
        assert [dict(row) for row in connection.execute(statement, values).mappings()] == mappings
        assert connection.execute(statement, values).scalars().all() == [row[0] for row in rows]
        assert connection.execute(statement, values).scalar() == (rows[0][0] if rows else None)
        first, mapping = connection.execute(statement, values).first(), connection.execute(statement, values).mappings()
        assert (None if first is None else tuple(first)) == (rows[0] if rows else None)
        assert mapping.first() == (mappings[0] if mappings else None)


def test_a_statement_is_prepared_from_its_second_execution_on(connection: Connection) -> None:
    statement = _ALL.where(things.c.id == bindparam("a"))
    assert not isinstance(connection.execute(statement, {"a": 1}), Rows)
    assert isinstance(connection.execute(statement, {"a": 1}), Rows)


def test_text_that_comes_with_a_call_is_not_written_into_a_statement(connection: Connection) -> None:
    """Numbers are; a text's backslashes would end where the server takes them for escapes."""
    statement = select(things.c.id).where(things.c.name == bindparam("wanted", type_=Text, literal_execute=True))
    connection.execute(statement, {"wanted": "first"})
    with pytest.raises(AssertionError):
        connection.execute(statement, {"wanted": "first"})


def test_rows_have_the_names_of_their_columns(connection: Connection) -> None:
    statement = select(things.c.id, things.c.at.label("since"), literal(2).label("count")).order_by(things.c.id)
    for _ in range(2):
        row = connection.execute(statement).all()[0]
        assert [row.id, row.since, row.count] == [1, NOW, 2]
        assert row._asdict() == {"id": 1, "since": NOW, "count": 2}


def test_writes_tell_their_rows_and_take_any_set_of_columns(connection: Connection) -> None:
    change, remove = update(things).where(things.c.id == bindparam("which")), delete(things).where(things.c.id > 2)
    for number in range(3):
        connection.execute(insert(things), {"name": f"new-{number}"})
        assert connection.execute(change, {"which": 1, "at": None, "status": Status.FAILED}).rowcount == 1
        assert connection.execute(change, {"which": 1, "tags": {"number": number}}).rowcount == 1
        assert connection.execute(change, {"which": 9, "tags": None}).rowcount == 0
        row = connection.execute(_ONE, {"which": 1}).one()
        assert (row.at, row.status, row.tags) == (None, Status.FAILED, {"number": number})
        assert connection.execute(remove).rowcount == 1


def test_an_insert_returns_the_key_of_its_row(connection: Connection) -> None:
    statement = insert(things)
    keys = [connection.execute(statement, {"name": name}).inserted_primary_key for name in ("a", "b", "c")]
    assert keys == [(3,), (4,), (5,)]


def test_a_derived_statement_is_another_one(connection: Connection) -> None:
    for _ in range(3):
        connection.execute(_ALL)
    assert [row.id for row in connection.execute(_ALL.where(things.c.id == 2))] == [2]


def test_statements_of_one_call_are_not_kept(connection: Connection) -> None:
    forms = prepared._forms[connection.dialect.name]
    before = len(forms)
    for number in range(20):
        statement = _ALL.where(things.c.id == number)
        for _ in range(3):
            connection.execute(statement)
    gc.collect()
    # SQLAlchemy's cache keeps the first of statements that differ in their values alone; one is in the variable.
    assert len(forms) <= before + 2


def test_more_sets_of_columns_than_are_kept_work_as_well(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "MAX_FORMS", 1)
    change = update(things).where(things.c.id == bindparam("which"))
    for _ in range(2):
        for name, value in {"at": NOW, "open": False, "share": 0.5}.items():
            assert connection.execute(change, {"which": 2, name: value}).rowcount == 1
    row = connection.execute(_ONE, {"which": 2}).one()
    assert (row.at, row.open, row.share) == (NOW, False, 0.5)
    assert len(prepared._forms[connection.dialect.name][change]) == 1


def test_an_error_is_of_its_kind_and_hides_the_values(connection: Connection) -> None:
    statement = insert(things)
    for _ in range(3):
        with pytest.raises(IntegrityError) as caught, connection.begin_nested():
            connection.execute(statement, {"name": "full", "said": "confidential"})
        assert "confidential" not in str(caught.value)
        assert getattr(caught.value.orig, "sqlite_errorcode", 0) or getattr(caught.value.orig, "sqlstate", "")


def test_a_lacking_value_is_an_error(connection: Connection) -> None:
    for _ in range(3):
        with pytest.raises(StatementError, match="which"):
            connection.execute(_ONE, {})


def test_a_value_that_cannot_be_converted_is_an_error_of_the_statement(connection: Connection) -> None:
    statement = _ALL.where(things.c.at == bindparam("at", type_=UtcDateTime))
    for _ in range(3):
        with pytest.raises(StatementError, match="no time zone"):
            connection.execute(statement, {"at": NOW.replace(tzinfo=None)})


@sqlite_alone
@pytest.mark.parametrize("fetch", ["all", "first", "scalar"])
def test_an_error_while_rows_are_read_is_of_its_kind(connection: Connection, fetch: str) -> None:
    # The driver computes the second row while the first one is read.
    statement = select(func.json(case((things.c.id == 1, "{}"), else_="no JSON"))).order_by(things.c.id)
    for _ in range(3):
        found = connection.execute(statement)
        with pytest.raises(OperationalError, match="JSON"):
            getattr(found, fetch)()


@pytest.mark.parametrize(("values", "error"), [({"least": 5}, NoResultFound), ({"least": 0}, MultipleResultsFound)])
def test_one_row_is_exactly_one(connection: Connection, values: dict[str, int], error: type[Exception]) -> None:
    statement = _ALL.where(things.c.id > bindparam("least"))
    for _ in range(3):
        with pytest.raises(error):
            connection.execute(statement, values).one()
        with pytest.raises(error):
            connection.execute(statement, values).scalar_one()
        with pytest.raises(error):
            connection.execute(statement, values).mappings().one()


def test_listeners_see_each_execution(database: Database) -> None:
    seen: list[str] = []
    event.listen(database.writing, "before_cursor_execute", lambda *call: seen.append(call[2]))
    with database.begin(database.writing) as connection:
        for _ in range(3):
            connection.execute(_ALL)
    assert len(seen) == 3


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = create_engine("sqlite://")
    with made.begin() as connection:
        things.create(connection)
        connection.execute(insert(things), [FULL, EMPTY])
    yield made
    made.dispose()


def test_a_connection_is_used_again_and_sees_who_listens_since(engine: Engine) -> None:
    seen: list[str] = []
    transactions, used = Transactions(sqlite3.Connection.execute), list[Connection]()
    for _ in range(3):
        with transactions.begin(engine) as connection:
            connection.execute(_ALL)
            used.append(connection)
    event.listen(engine, "before_cursor_execute", lambda *call: seen.append(call[2]))
    with transactions.begin(engine) as connection:
        connection.execute(_ALL)
        used.append(connection)
    assert len(set(used)) == 1
    assert len(seen) == 1


def test_transactions_at_the_same_time_have_connections_of_their_own(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/things.db")
    with engine.begin() as connection:
        things.create(connection)
    transactions, count = Transactions(sqlite3.Connection.execute), select(func.count()).select_from(things)
    for rows in range(3):
        with transactions.begin(engine) as one, transactions.begin(engine) as other:
            assert one is not other
            one.execute(insert(things), {"name": f"new-{rows}"})
            assert [one.execute(count).scalar(), other.execute(count).scalar()] == [rows + 1, rows]
        with transactions.begin(engine) as again:
            assert again is one
    transactions.close()
    engine.dispose()


def test_a_connection_that_failed_is_not_used_again(engine: Engine) -> None:
    transactions, used = Transactions(sqlite3.Connection.execute), list[Connection]()

    def fail() -> None:
        with transactions.begin(engine) as connection:
            used.append(connection)
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
    assert used[0] is not used[1]
    assert all(connection.closed for connection in used)


def test_connections_are_closed_in_the_end_and_made_anew(engine: Engine) -> None:
    transactions = Transactions(sqlite3.Connection.execute)
    with transactions.begin(engine) as first:
        pass
    assert not first.closed
    transactions.close()
    assert first.closed
    with transactions.begin(engine) as second:
        assert second.execute(_ALL).first() is not None


def _fail_after(database: Database, statement: Executable) -> None:
    with database.begin(database.writing) as connection:
        assert isinstance(connection, PreparedConnection)
        connection.execute(statement, {"name": "new"})
        raise ZeroDivisionError


def test_a_failed_transaction_is_rolled_back(database: Database) -> None:
    statement = insert(things)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            _fail_after(database, statement)
    with database.writing.begin() as connection:
        assert len(connection.execute(_ALL).all()) == 2
