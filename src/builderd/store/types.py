"""Column types that return exactly the value stored, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import DateTime, Dialect, Enum, Numeric, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

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
