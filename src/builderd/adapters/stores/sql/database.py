"""A database as the store needs it: what differs between SQLite and PostgreSQL stands in their own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

#: For every engine. NaN is no JSON, and only one of the databases would take it. What is stored, tokens and
#: environments among it, must not come into logs by way of an error's text.
ENGINE_OPTIONS: dict[str, Any] = {
    "json_serializer": partial(json.dumps, allow_nan=False, separators=(",", ":")),
    "hide_parameters": True,
}


@dataclass(frozen=True, slots=True)
class Database:
    """``writing`` and ``reading`` open transactions of their kind; ``begin_migration`` one that migrates alone.

    ``writers`` and ``readers`` are how many of each kind may go on at once; with 0 readers, reads take turns with
    writes. ``is_passing`` tells an error after which the whole transaction may be run again from one that would come
    again. ``why_down`` says what is wrong, and its cure, where the database is at fault: it does not answer, or cannot
    read or write. None for an error of the work.
    """

    writing: Engine
    reading: Engine
    writers: int
    readers: int
    begin_migration: Callable[[], AbstractContextManager[Connection]]
    is_passing: Callable[[DBAPIError], bool]
    why_down: Callable[[Exception], str | None]
