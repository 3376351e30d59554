"""The database's clock in SQL."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from builderd.store.types import UtcDateTime


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
