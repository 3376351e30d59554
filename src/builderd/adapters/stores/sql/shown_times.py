"""Times as text that is shown, on SQLite as on PostgreSQL: a list makes no object of each."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class ShownTime(FunctionElement[str]):
    """A time in UTC to the second, as RFC 3339 writes it; its fraction is cut off. NULL stays NULL."""

    type = Text()
    name = "shown_time"
    inherit_cache = True


@compiles(ShownTime)
def _time(element: ShownTime, compiler: SQLCompiler, **options: Any) -> str:
    time = compiler.process(element.clauses, **options)
    return f"""to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"""


@compiles(ShownTime, "sqlite")
def _time_on_sqlite(element: ShownTime, compiler: SQLCompiler, **options: Any) -> str:
    """Take the characters: a stored time is ``YYYY-MM-DD hh:mm:ss.ffffff``."""
    time = compiler.process(element.clauses, **options)
    return f"substr({time}, 1, 10) || 'T' || substr({time}, 12, 8) || 'Z'"
