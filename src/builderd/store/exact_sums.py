"""Parts of times as integers, whose sums are exact, on SQLite as on PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


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
