"""Rows whose values cannot be decoded, as after a fault of the disk: they cost their builder alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

from sqlalchemy import JSON, Connection, Enum, Select, Table, bindparam, literal_column, select, update

from builderd.domain.builders import Desired, Status, Visibility
from builderd.domain.errors import RecordDamaged
from builderd.domain.ids import BuilderId
from builderd.store.tables import builders, ledger, sandboxes, versions
from builderd.store.types import ExactDecimal, UtcDateTime

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Errors of decoding a value: a word that is none, JSON that is none, a time or a number that is none.
UNDECODABLE = (LookupError, ValueError, TypeError, ArithmeticError)
#: Seconds between two log lines about the same builder.
LOG_INTERVAL = 300.0
_logged: dict[str, float] = {}
#: Words for damaged ones of a builder that is deleted; of other columns, the first.
_WORDS = {"status": Status.FAILED.value, "desired": Desired.STOPPED.value, "visibility": Visibility.PRIVATE.value}


@contextmanager
def damage_named(builder: str | Callable[[], str]) -> Iterator[None]:
    """Raise ``RecordDamaged`` for a row of this builder that cannot be decoded."""
    try:
        yield
    except UNDECODABLE as error:
        found = builder if isinstance(builder, str) else builder()
        _log(found, error)
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
        ids = connection.execute(select(rows.c[builder]).distinct(), values).scalars().all()
    damaged = []
    for one in ids:
        try:
            for row in connection.execute(select(rows).where(rows.c[builder] == one), values).all():
                read(row)
        except UNDECODABLE as error:
            damaged.append(one)
            _log(one, error)
    kept = select(rows).where(rows.c[builder].not_in(damaged))
    return [read(row) for row in connection.execute(kept, values).all()]


def _log(builder: str, error: Exception) -> None:
    now = time.monotonic()
    if now >= _logged.get(builder, 0.0):
        _logged[builder] = now + LOG_INTERVAL
        log.error("record damaged builder=%s error=%s remedy=%s", builder, error, RecordDamaged.REMEDY)


def replace_undecodable(connection: Connection, builder: BuilderId, now: datetime) -> None:
    """Overwrite what cannot be decoded in the rows of a builder, so that it can be deleted."""
    for table in (builders, versions, sandboxes, ledger):
        column = "id" if table is builders else "builder_id"
        typed = [one for one in table.c if isinstance(one.type, Enum | JSON | UtcDateTime | ExactDecimal)]
        raw: list[Any] = [literal_column(one.name) for one in (*table.primary_key, *typed)]
        keys = len(table.primary_key)
        found = select(*raw).select_from(table).where(table.c[column] == bindparam("builder"))
        for row in connection.execute(found, {"builder": builder}).all():
            _replace_in(connection, table, row[:keys], dict(zip(typed, row[keys:], strict=True)), now)


def _replace_in(
    connection: Connection, table: Table, key: Sequence[Any], raw: Mapping[Any, Any], now: datetime
) -> None:
    replaced: dict[str, Any] = {}
    for column, value in raw.items():
        decode = column.type.dialect_impl(connection.dialect).result_processor(connection.dialect, None)
        try:
            if decode is not None:
                decode(value)
        except UNDECODABLE:
            replaced[column.key] = _replacement(column, now)
    if replaced:
        is_it = [one == value for one, value in zip(table.primary_key, key, strict=True)]
        connection.execute(update(table).where(*is_it).values(replaced))


def _replacement(column: Any, now: datetime) -> Any:
    if isinstance(column.type, UtcDateTime):
        return now
    if column.nullable:
        return None
    if isinstance(column.type, Enum):
        words: Sequence[Any] = list(column.type.enum_class or ())
        return next((word for word in words if word == _WORDS.get(column.name)), words[0])
    return {} if isinstance(column.type, JSON) else Decimal(0)
