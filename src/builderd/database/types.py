"""Column types that return exactly the value stored, expressions of times, and rows of dataclasses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import DateTime, Dialect, Enum, Numeric, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
from sqlalchemy import BigInteger
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

#: Characters that a text column of PostgreSQL (NUL) or UTF-8 itself (half a surrogate pair) cannot hold.
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
WORD_LENGTH = 32


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, stored in UTC with microseconds. Raises ``ValueError`` for a time without a zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        # SQLite has no zones: stored times are UTC.
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class ExactDecimal(TypeDecorator[Decimal]):
    """A finite decimal number with all its digits: NUMERIC on PostgreSQL, text on SQLite, whose numbers are binary.

    Raises ``ValueError`` for NaN and infinity.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Numeric() if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Decimal | str | None:
        if value is None:
            return None
        if not value.is_finite():
            raise ValueError(f"{value} is no amount")
        return value if dialect.name == "postgresql" else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value)


class ForeignText(TypeDecorator[str]):
    """Text from outside (apps, installers, error messages): a character that cannot be stored becomes U+FFFD.

    Otherwise a package whose build prints a NUL would fail the transaction that records its log.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else UNSTORABLE.sub("\ufffd", value)


def enum_column(words: type[StrEnum]) -> Enum:
    """Return a column type for the values of an enum, stored as the API shows them.

    There is no CHECK constraint: enums grow, and SQLite changes a CHECK only by rebuilding the table. A value that the
    enum lacks fails when it is written and when it is read.
    """
    return Enum(
        words,
        native_enum=False,
        create_constraint=False,
        length=WORD_LENGTH,
        values_callable=lambda enum: [member.value for member in enum],
    )


def row_of(value: DataclassInstance) -> dict[str, Any]:
    """Return ``{field: value}`` of a dataclass, shallow: values are neither copied nor converted."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def omit(row: Mapping[str, Any], *key: str) -> dict[str, Any]:
    """Return the row without its key columns, as an update's values.

    An update that sets the key makes SQLite visit every row that refers to it.
    """
    return {name: value for name, value in row.items() if name not in key}


class EpochSeconds(FunctionElement[int]):
    """Whole seconds from 1970 to a time."""

    type = BigInteger()
    name = "epoch_seconds"
    inherit_cache = True


class Microseconds(FunctionElement[int]):
    """Microseconds of a time within its second. Apart from the seconds, since SQLite's integers have 64 bits only."""

    type = BigInteger()
    name = "microseconds"
    inherit_cache = True


@compiles(EpochSeconds)
def _seconds(element: EpochSeconds, compiler: SQLCompiler, **options: Any) -> str:
    return f"CAST(floor(extract(epoch FROM {compiler.process(element.clauses, **options)})) AS BIGINT)"


@compiles(EpochSeconds, "sqlite")
def _seconds_on_sqlite(element: EpochSeconds, compiler: SQLCompiler, **options: Any) -> str:
    """Leave the fraction out: SQLite rounds it to milliseconds, and .9996 would be the next second."""
    return f"unixepoch(substr({compiler.process(element.clauses, **options)}, 1, 19))"


@compiles(Microseconds)
def _microseconds(element: Microseconds, compiler: SQLCompiler, **options: Any) -> str:
    return f"mod(CAST(extract(microseconds FROM {compiler.process(element.clauses, **options)}) AS BIGINT), 1000000)"


@compiles(Microseconds, "sqlite")
def _microseconds_on_sqlite(element: Microseconds, compiler: SQLCompiler, **options: Any) -> str:
    """Read the digits: a stored time is ``YYYY-MM-DD hh:mm:ss.ffffff``, and SQLite's own times have milliseconds."""
    return f"CAST(substr({compiler.process(element.clauses, **options)}, 21) AS INTEGER)"


class database_now(FunctionElement[datetime]):  # noqa: N801 -- reads as a function
    """The database's clock when the statement runs, not when its transaction began."""

    inherit_cache = True
    type = UtcDateTime()


@compiles(database_now, "postgresql")
def _now_postgresql(element: database_now, compiler: SQLCompiler, **_: Any) -> str:
    return "clock_timestamp()"


@compiles(database_now, "sqlite")
def _now_sqlite(element: database_now, compiler: SQLCompiler, **_: Any) -> str:
    # The format in which SQLAlchemy stores times: six decimals of a second, of which SQLite provides three.
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
