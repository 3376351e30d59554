"""A database as the store uses it: SQLite and PostgreSQL each implement it in their own file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

#: Options of every engine. NaN is not JSON, and only one of the databases accepts it. Stored values, tokens and
#: environments among them, must not reach the logs through an error's text.
ENGINE_OPTIONS: dict[str, Any] = {
    "json_serializer": partial(json.dumps, allow_nan=False, separators=(",", ":")),
    "hide_parameters": True,
}


@dataclass(frozen=True, slots=True)
class Database:
    """Engines and error rules of one database.

    ``writing`` and ``reading`` open transactions of their kind; ``begin_migration`` opens one that migrates alone.
    ``writers`` and ``readers`` limit the concurrent transactions of each kind; with 0 readers, reads run in the threads
    of the writers. ``is_passing`` returns True for an error after which the whole transaction may succeed when run
    again. ``outage_reason`` describes a fault of the database (no answer, cannot read or write) and its remedy, and
    returns None for any other error. ``find_damage`` looks for damage in the database's files for a bounded time, and
    returns None when it did not finish.
    """

    writing: Engine
    reading: Engine
    writers: int
    readers: int
    begin_migration: Callable[[], AbstractContextManager[Connection]]
    is_passing: Callable[[DBAPIError], bool]
    outage_reason: Callable[[Exception], str | None]
    find_damage: Callable[[], Sequence[str] | None]
