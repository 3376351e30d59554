"""Times as text that is shown, on SQLite as on PostgreSQL: a list makes no object of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Dialect, Text, cast
from sqlalchemy.types import TypeDecorator


class _ShownTime(TypeDecorator[str]):
    """A time in UTC to the second, as RFC 3339 writes it; its fraction is cut off.

    The database writes ``YYYY-MM-DD hh:mm:ss.ffffff`` at the beginning: SQLite as it is stored, PostgreSQL in the zone
    and the style that ``postgresql.py`` gives to each session.
    """

    impl = Text
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: Any) -> Callable[[Any], str | None]:
        # Not by ``process_result_value``, which costs a call more for each of the 500 times of a page.
        return _as_shown


def _as_shown(stored: str | None) -> str | None:
    return None if stored is None else f"{stored[:10]}T{stored[11:19]}Z"


def shown_time(time: ColumnElement[Any]) -> ColumnElement[str]:
    """Read a time in UTC as text. NULL stays NULL."""
    return cast(time, _ShownTime)
