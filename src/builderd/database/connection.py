"""A database as the store uses it, which SQLite and PostgreSQL each implement, and the kinds of writes to it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from enum import StrEnum
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


class Kind(StrEnum):
    #: Backups and restores.
    BACKUPS = "backups"
    DOMAINS = "domains"
    EVENTS = "events"
    #: QA reports that are wanted or being made.
    REPORTS = "reports"
    WEBHOOKS = "webhooks"


class Writes:
    def __init__(self) -> None:
        self._numbers: Counter[Kind | None] = Counter()
        self._waiting: dict[asyncio.Future[None], frozenset[Kind]] = {}

    def add(self, written: asyncio.Future[tuple[Any, set[Kind | None]]]) -> None:
        """Count a transaction that is committed, and wake those who wait for one of its kinds."""
        if written.cancelled() or written.exception() is not None:
            return
        _, kinds = written.result()
        self._numbers.update(kinds)
        for future, wanted in self._waiting.items():
            if not wanted.isdisjoint(kinds) and not future.done():
                future.set_result(None)

    def count(self, kinds: frozenset[Kind]) -> int:
        return sum(self._numbers[kind] for kind in kinds)

    async def wait(self, kinds: frozenset[Kind], seen: int, timeout_seconds: float) -> None:
        if self.count(kinds) != seen:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = kinds
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(future, timeout_seconds)
        finally:
            del self._waiting[future]
