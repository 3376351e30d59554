"""Standbys of the service that works: which closed routes each has applied, and the visits that it has led directly.

A standby leads plain visits by its list of routes for ``DIRECT_SECONDS`` after each question that was answered. What
needs a route closed waits until all of them have acknowledged it, or their time has ended: once for all routes, since
a standby whose time has ended is not waited for until it leads visits again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

from builderd.adapters.previews.haproxy import activity
from builderd.domain.errors import EngineUnavailable
from builderd.domain.previews import PreviewActivity
from builderd.domain.route_list import CLOSED_AFTER
from builderd.domain.standby_reports import StandbyReport

log = logging.getLogger(__name__)
#: Most runs of standbys' proxies that are known at a time, and seconds of silence after which one is forgotten.
MOST_STANDBYS, FORGOTTEN_AFTER = 200, 60.0
#: Seconds between two questions for requests that are open at a standby.
COUNT_INTERVAL = 0.05
_RATES = ("open_connections", "requests_per_minute")
_SUMS = tuple(one.name for one in fields(PreviewActivity) if one.name not in (*_RATES, "idle_seconds", "class_times"))


@dataclass(slots=True)
class _Counted:
    """Visits of one host since they are added up here, and when the last one ended, by the monotonic clock."""

    activity: PreviewActivity
    last_at: float


@dataclass(slots=True)
class _Standby:
    """One run of a standby's proxy. ``answered``: when the last question that was answered had come."""

    asked_at: float
    answered: float = float("-inf")
    mark: int = -1
    #: Its counters when it was first heard; None before it has sent all of them.
    base: Mapping[str, PreviewActivity] | None = None
    counts: dict[str, _Counted] = field(default_factory=dict)
    #: By the last count of each host: it is read after another one alone.
    open: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Mark:
    """A number, and until when each standby is waited for that has not sent it back."""

    number: int
    deadlines: Mapping[str, float]


class Standbys:
    """Standbys that one run of a service knows."""

    def __init__(self) -> None:
        self._mark = 0
        self._known: dict[str, _Standby] = {}
        #: Closed routes that may not be acknowledged yet.
        self._closed: dict[str, _Mark] = {}
        #: Hosts whose open requests a standby is to count, with the mark at which it was asked.
        self._asked: dict[str, int] = {}
        #: Visits that forgotten standbys have led.
        self._gone: dict[str, _Counted] = {}
        #: Set, and replaced, when standbys have something to learn, and when one has reported.
        self._news, self._reports = asyncio.Event(), asyncio.Event()
        self._first_close_at = 0.0
        #: Hosts that an earlier service may have told standbys.
        self._told_before: frozenset[str] = frozenset()
        self._pruned_at = time.monotonic()

    def begin(self, first_close_at: float, hosts: Collection[str]) -> None:
        """Take no route of these hosts for closed before this time, by the monotonic clock.

        Standbys may lead by what an earlier service told them. It told them nothing of other hosts.
        """
        self._first_close_at, self._told_before = first_close_at, frozenset(hosts)

    # What the service does

    def close(self, host: str) -> None:
        """Note that a route which standbys may lead by is closed from now on: call it beside the change."""
        made = self._new_mark(host)
        if made.deadlines:
            self._closed[host] = made

    async def closed(self, host: str, *, is_closed: bool = True) -> None:
        """Return once no standby leads by an earlier route of the host. ``is_closed``: it has none to lead by now."""
        if is_closed and host in self._told_before:
            if (left := self._first_close_at - time.monotonic()) > 0:
                await asyncio.sleep(left)
            else:
                self._told_before = frozenset()
        if (made := self._closed.get(host)) is not None:
            await self._acknowledged(made, host)
            if self._closed.get(host) is made:
                del self._closed[host]

    async def open_requests(self, host: str) -> int:
        """Return how many requests of the host are open at standbys, without streams; asks each of them now."""
        made = self._new_mark(host)
        if not made.deadlines:
            return 0
        await self._acknowledged(made, host)
        if count := sum(one.open.get(host, 0) for one in self._known.values() if _is_live(one)):
            await asyncio.sleep(COUNT_INTERVAL)
        return count

    def activity(self) -> dict[str, PreviewActivity]:
        """Return the counters of the hosts that standbys were visited for."""
        now = time.monotonic()
        found = [_shown(self._gone, now, is_live=False)]
        return activity.total(
            [*found, *(_shown(one.counts, now, is_live=_is_live(one)) for one in self._known.values())]
        )

    # What a standby does

    def take(self, report: StandbyReport, at: float, *, knows_run: bool, hosts: Container[str]) -> None:
        """Take a report that came at this time. ``knows_run``: its mark is one of this run; ``hosts``: with a route.

        Raises ``EngineUnavailable`` where there are too many standbys.
        """
        self._forget(at, hosts)
        if (standby := self._known.get(report.standby)) is None:
            if len(self._known) >= MOST_STANDBYS:
                raise EngineUnavailable(f"more than {MOST_STANDBYS} standbys ask for routes", retry_after=5)
            standby = self._known[report.standby] = _Standby(at)
        standby.asked_at = at
        # Not before it is of this run: it may have applied another one's.
        standby.mark = min(report.mark, self._mark) if knows_run else -1
        # Merged: who asked for a count may read it after the next report.
        standby.open |= {host: count for host, count in report.open.items() if host in hosts}
        if standby.base is None and report.whole:
            standby.base = report.counts
        if standby.base is not None:
            for host, counted in report.counts.items():
                if host in hosts:
                    standby.counts[host] = _since(counted, standby.base.get(host), at)
        self._reports = _set(self._reports)

    async def news(self, standby: str, seconds: float) -> None:
        """Return once there is something that the standby has to know, after these seconds at most."""
        found, event = self._known.get(standby), self._news
        if found is not None and found.base is not None and found.mark == self._mark:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await event.wait()

    def answer(self, standby: str, at: float, *, leads: bool = True) -> dict[str, Any]:
        """Return what the standby learns beside the routes of this moment, for its question that came at ``at``.

        From then on it may lead visits by them, if it ``leads``.
        """
        found = self._known.get(standby)
        if found is None:
            raise EngineUnavailable("this standby is not known any more", retry_after=1)
        if leads:
            found.answered = max(found.answered, at)
        asked = [host for host, mark in self._asked.items() if mark > found.mark]
        return {"mark": self._mark, "asked": asked, "recount": found.base is None}

    def _new_mark(self, host: str) -> _Mark:
        now = time.monotonic()
        ends = {one: standby.answered + CLOSED_AFTER for one, standby in self._known.items()}
        deadlines = {one: end for one, end in ends.items() if end > now}
        if deadlines:
            self._mark += 1
            self._asked.pop(host, None)
            self._asked[host] = self._mark
            self._news = _set(self._news)
        return _Mark(self._mark, deadlines)

    async def _acknowledged(self, made: _Mark, host: str) -> None:
        while True:
            event, now = self._reports, time.monotonic()
            open_ends = [end for one, end in made.deadlines.items() if not self._has_sent(one, made.number)]
            if not open_ends:
                return
            if (left := max(open_ends) - now) <= 0:
                log.warning("standby did not acknowledge a closed route, its time has ended host=%s", host)
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await event.wait()

    def _has_sent(self, standby: str, mark: int) -> bool:
        found = self._known.get(standby)
        return found is not None and found.mark >= mark

    def _forget(self, now: float, hosts: Container[str]) -> None:
        """Forget silent standbys but for their visits; now and then also what concerns hosts without a route."""
        for one in [one for one, standby in self._known.items() if now - standby.asked_at > FORGOTTEN_AFTER]:
            for host, counted in self._known.pop(one).counts.items():
                before = self._gone.get(host)
                self._gone[host] = counted if before is None else _added(before, counted)
        least = min((one.mark for one in self._known.values()), default=self._mark)
        while self._asked and self._asked[first := next(iter(self._asked))] <= least:
            del self._asked[first]
        if now - self._pruned_at < FORGOTTEN_AFTER:
            return
        self._pruned_at = now
        for table in (self._gone, *(one.counts for one in self._known.values())):
            for host in [host for host in table if host not in hosts]:
                del table[host]
        for standby in self._known.values():
            standby.open = {host: count for host, count in standby.open.items() if count and host in hosts}
        self._closed = {host: one for host, one in self._closed.items() if max(one.deadlines.values()) > now}


def _set(event: asyncio.Event) -> asyncio.Event:
    """Wake all that wait, and return the event for those that wait next."""
    event.set()
    return asyncio.Event()


def _is_live(standby: _Standby) -> bool:
    """Return True while what the standby said of open requests is true: its visits end when it does."""
    return time.monotonic() - standby.asked_at < CLOSED_AFTER


def _since(counted: PreviewActivity, base: PreviewActivity | None, at: float) -> _Counted:
    """Return what was counted since ``base``; a counter that went down counts from 0."""
    last_at = at - counted.idle_seconds
    if base is None:
        return _Counted(counted, last_at)
    sums = {name: _more(getattr(counted, name), getattr(base, name)) for name in _SUMS}
    before = base.class_times or (0,) * len(counted.class_times)
    times = tuple(map(_more, counted.class_times, before))
    return _Counted(replace(counted, **sums, class_times=times), last_at)


def _more(now: int, before: int) -> int:
    return now - before if now >= before else now


def _added(one: _Counted, other: _Counted) -> _Counted:
    both = activity.total([{"": one.activity}, {"": other.activity}])[""]
    return _Counted(both, max(one.last_at, other.last_at))


def _shown(counts: Mapping[str, _Counted], now: float, *, is_live: bool) -> dict[str, PreviewActivity]:
    """Return the counters as of now; what is open is known of a standby that reports alone."""
    shown = {host: replace(one.activity, idle_seconds=max(now - one.last_at, 0.0)) for host, one in counts.items()}
    if is_live:
        return shown
    return {host: replace(one, open_connections=0, requests_per_minute=0) for host, one in shown.items()}
