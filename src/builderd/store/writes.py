"""Numbers of transactions by the kinds of records that they wrote, for tasks of one event loop that wait for them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from enum import StrEnum


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
        self._numbers: Counter[Kind] = Counter()
        self._waiting: dict[asyncio.Future[None], frozenset[Kind]] = {}

    def add(self, kinds: Collection[Kind]) -> None:
        """Count a transaction that is committed, and wake those who wait for one of its kinds."""
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
