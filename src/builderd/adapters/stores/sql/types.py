"""Column types that give back exactly what was put in, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from sqlalchemy import DateTime, Dialect, Enum, Numeric, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

#: What a text column of PostgreSQL (NUL) or UTF-8 itself (half a surrogate pair) cannot hold.
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
WORD_LENGTH = 32


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, stored in UTC with microseconds. Times without a zone are refused with ``ValueError``."""

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
        # SQLite has no zones: what it holds was put in as UTC.
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class ExactDecimal(TypeDecorator[Decimal]):
    """A finite decimal number with all its digits: NUMERIC on PostgreSQL, text on SQLite, whose numbers are binary."""

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
    """What others wrote (apps, installers, error messages): a character that cannot be stored becomes U+FFFD.

    Without it, a package whose build prints a NUL would fail the transaction that records its log.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else UNSTORABLE.sub("\ufffd", value)


def word(words: type[StrEnum]) -> Enum:
    """One of the words of an enum, stored as the API shows it.

    Without a CHECK of its own: the words of an enum grow, and a CHECK of SQLite changes only by building the
    table anew. A word that the enum lacks fails when it is written and when it is read.
    """
    return Enum(
        words,
        native_enum=False,
        create_constraint=False,
        length=WORD_LENGTH,
        values_callable=lambda enum: [member.value for member in enum],
    )
