"""Counters of the visits that a standby's proxy has led by its list of routes."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from builderd.adapters.previews.haproxy import activity, runtime_api
from builderd.adapters.previews.haproxy.counting import TABLES
from builderd.domain.previews import PreviewActivity

#: Seconds between two readings of all hosts that were visited within the last minute.
READ_INTERVAL = 2.0
#: The tables' rate is that of a minute, so a reading misses no visit.
_ACTIVE = ("data.http_req_rate gt 0", "data.conn_cur gt 0")

Ask = Callable[[Sequence[str]], Awaitable[Sequence[str]]]


class VisitCounts:
    """``ask`` returns a proxy's answers to commands. Each proxy has a ``VisitCounts`` of its own."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._read_at = float("-inf")
        #: Hosts whose last counters the service may not have yet.
        self._active: set[str] = set()
        #: Those of the reading that it does not have yet.
        self._unsent: set[str] | None = None

    async def read(
        self, asked: Collection[str], *, whole: bool
    ) -> tuple[Mapping[str, PreviewActivity], Mapping[str, int]]:
        """Return the counters of hosts that were visited lately, or of all; and the open requests of those asked for.

        Streams are counted, but are no open requests. Not all readings have all hosts.
        """
        counts: dict[str, PreviewActivity] = {}
        ended: set[str] = set()
        if whole or time.monotonic() - self._read_at >= READ_INTERVAL:
            self._read_at = time.monotonic()
            chosen = ("",) if whole else _ACTIVE
            counts = await self._rows([[f"show table {table} {one}" for one in chosen] for table in TABLES])
            self._unsent = set(counts)
            ended, self._active = self._active - counts.keys(), self._active | counts.keys()
        opened: dict[str, int] = {}
        if hosts := sorted({*asked, *ended}):
            requests, streams = [[f"show table {table} key {host}" for host in hosts] for table in TABLES]
            found = await self._table([activity.AFTER_TURNS, *requests])
            opened = {host: found[host].open_connections if host in found else 0 for host in asked}
            counts |= activity.total((found, await self._table(streams)))
        return counts, opened

    def sent(self) -> None:
        """Note that the service has what was read last."""
        if self._unsent is not None:
            self._active, self._unsent = self._unsent, None

    async def has_open_requests(self) -> bool:
        """Return True while a request is open, without streams."""
        return bool(await self._table([f"show table {TABLES[0]} data.conn_cur gt 0"]))

    async def _rows(self, commands: Sequence[Sequence[str]]) -> dict[str, PreviewActivity]:
        return activity.total([await self._table(one) for one in commands])

    async def _table(self, commands: Sequence[str]) -> dict[str, PreviewActivity]:
        answers = await self._ask([*runtime_api.command_lines(commands)])
        return activity.parse("\n".join(answers))
