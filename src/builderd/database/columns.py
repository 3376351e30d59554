"""The metadata of all tables, and types and columns that several tables share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, ForeignKeyConstraint, Index, Integer, MetaData, Text, text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


#: Text sorted by bytes on both databases, also with a PostgreSQL of another locale.
NAME = Text().with_variant(Text(collation="C"), "postgresql")


#: SQLite generates ids only in a column of exactly INTEGER (64 bits there).
COUNTER = BigInteger().with_variant(Integer(), "sqlite")


def document() -> JSON:
    # JSON and not JSONB on PostgreSQL: it keeps the order of keys and accepts every string of JSON.
    return JSON(none_as_null=True)


def unique_where(name: str, column: str, condition: str, *more: str) -> Index:
    return Index(name, column, *more, unique=True, sqlite_where=text(condition), postgresql_where=text(condition))


def index_where(name: str, condition: str, *columns: str) -> Index:
    """Return an index of the rows that meet a condition, which a query repeats word by word to use it."""
    return Index(name, *columns, sqlite_where=text(condition), postgresql_where=text(condition))


def version_key(table: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["builder_id", "version"], ["versions.builder_id", "versions.number"], name=f"fk_{table}_version"
    )


def builder_columns() -> tuple[Column[Any], ...]:
    return (
        Column("tenant_id", Text, ForeignKey("tenants.id"), nullable=False),
        Column("builder_id", Text, ForeignKey("builders.id"), nullable=False),
    )


NEVER_REUSE_IDS: dict[str, Any] = {"sqlite_autoincrement": True}
