"""A standby leads plain visits directly to their apps, while the service that works confirms its list of routes.

The standby asks again and again; each answer comes when a route was closed, or after half a second. The proxy has what
the answer changed before it may use the list for a few seconds more, and before the next question acknowledges it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

from builderd.adapters.previews.haproxy.forwarder import Forwarder, Target
from builderd.adapters.previews.haproxy.visit_counts import VisitCounts
from builderd.bootstrap.route_lists import EXCHANGE_PATH, Moment, RouteList, SeenLease
from builderd.bootstrap.standby_hops import StandbyHops
from builderd.bootstrap.worker_calls import NoExchange, ask_routes
from builderd.domain.errors import EngineUnavailable
from builderd.domain.standby_reports import StandbyReport

log = logging.getLogger(__name__)
#: Seconds between two questions where one failed, where the service tells its list alone, and where it has nothing new.
RETRY_INTERVAL, LIST_INTERVAL, LEAST_INTERVAL = 1.0, 3.0, 0.1
#: Seconds for which open requests may be answered when the standby ends.
DRAIN_SECONDS, DRAIN_INTERVAL = 5.0, 0.05


class DirectVisits:
    """``start`` and ``stop`` may be called again. ``lease``: as seen last; ``own``: this member's address."""

    def __init__(
        self,
        forwarder: Forwarder,
        routes: RouteList,
        hops: StandbyHops,
        lease: Callable[[], SeenLease | None],
        own: Callable[[], str | None],
    ) -> None:
        self._forwarder = forwarder
        self._routes = routes
        self._hops = hops
        self._lease = lease
        self._own = own
        #: The proxy may not have all of the list, and the kernel not all of its routes.
        self.lacks_list = self._lacks_hops = False
        #: Addresses that the proxy's list leaves out, since they are not reached.
        self._lost: frozenset[str] = frozenset()
        #: The last answer was applied: only then the next one may lead visits.
        self._applies = True
        #: What failed last, "" for nothing; logged once.
        self.fault = ""
        self._task: asyncio.Task[None] | None = None
        self._service: tuple[Target, str] | None = None
        self._id = secrets.token_hex(8)
        self._counts = VisitCounts(forwarder.counts)
        #: How many proxies were started when this one was, and whether all of its counters were sent.
        self._starts, self._is_counted = -1, False
        #: The run of the service, and its last closed route that the proxy has.
        self._applied = ("", 0)
        self._is_allowed = False
        self._confirmed_at = float("-inf")

    def start(self, target: Target, secret: str) -> None:
        """Ask this service from now on."""
        if self._task is None or self._task.done() or self._service != (target, secret):
            if self._task is not None:
                self._task.cancel()
            self._service = target, secret
            self._task = asyncio.create_task(self._keep_asking(target, secret, self._task))

    async def stop(self, *, at_once: bool = True) -> None:
        """Lead no visit directly any more: all are passed on. Else than ``at_once``, by the permission's own end."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        if at_once:
            await self._end()

    def was_confirmed(self, seconds: float) -> bool:
        """Return True if visits were led within the last seconds: their apps must still be reached."""
        return time.monotonic() - self._confirmed_at < seconds

    async def drain(self) -> None:
        """Wait for some seconds until no request is open that was led directly."""
        deadline = time.monotonic() + DRAIN_SECONDS
        with suppress(EngineUnavailable):
            while await self._counts.has_open_requests() and time.monotonic() < deadline:  # noqa: ASYNC110 -- no event
                await asyncio.sleep(DRAIN_INTERVAL)

    async def _keep_asking(self, target: Target, secret: str, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        while True:
            try:
                await asyncio.sleep(await self._ask(target, secret))
                self.fault = ""
                continue
            except EngineUnavailable as error:
                self._fail(error.message)
            except Exception as error:
                log.exception("question for routes failed, retrying delay=%g", RETRY_INTERVAL)
                self._fail(f"{type(error).__name__}: {error}")
            # What was allowed ends by itself, within seconds in which a visit would wait for a service that is gone.
            await asyncio.sleep(RETRY_INTERVAL)

    def _fail(self, reason: str) -> None:
        if reason != self.fault:
            log.warning("all visits are passed on, list of routes not read error=%s", reason)
        self.fault = reason

    async def _ask(self, target: Target, secret: str) -> float:
        """Ask once; return the seconds until the next question."""
        asked_at, began = Moment(), time.monotonic()
        if not self._forwarder.serves_list:
            await self._read(target, secret)
            return LIST_INTERVAL
        starts = self._begin_proxy()
        leads, self._applies = self._applies, False
        report = await self._report(leads=leads)
        try:
            content = await ask_routes(target, secret, EXCHANGE_PATH, report.encode())
        except NoExchange:
            await self._end()
            await self._read(target, secret)
            return LIST_INTERVAL
        changes = await self._take(content, asked_at)
        told = self._routes.told
        if starts != self._forwarder.starts:
            raise EngineUnavailable("the standby's proxy was started again")
        self._applied = self._routes.run, told.mark
        self._is_counted = (self._is_counted or report.whole) and not told.recount
        self._counts.sent()
        if leads:
            await self._allow()
        self._applies = True
        is_news = changes or told.asked or not self._is_counted or not leads
        return 0.0 if is_news or time.monotonic() - began > LEAST_INTERVAL else LEAST_INTERVAL

    def _begin_proxy(self) -> int:
        """Note a new proxy: it has no list, no counters, and what an earlier one does, it does not know."""
        if (starts := self._forwarder.starts) != self._starts:
            self._starts, self._is_counted, self._applied = starts, False, ("", 0)
            self._counts = VisitCounts(self._forwarder.counts)
            self.lacks_list = True
        return starts

    async def _report(self, *, leads: bool) -> StandbyReport:
        run, mark = self._applied
        is_same = bool(run) and run == self._routes.run
        asked = self._routes.told.asked if is_same else ()
        counts, opened = await self._counts.read(asked, whole=not self._is_counted)
        return StandbyReport(
            f"{self._id}-{self._starts}",
            self._routes.version,
            mark if is_same else 0,
            not self._is_counted,
            counts,
            opened,
            leads,
        )

    async def _read(self, target: Target, secret: str) -> None:
        """Bring the list up to date, for the time without a service."""
        asked_at = Moment()
        await self._take(await ask_routes(target, secret, self._routes.query), asked_at, leads=False)

    async def _take(self, content: bytes, asked_at: Moment, *, leads: bool = True) -> bool:
        """Take an answer over, and give the proxy what it changes; return True if that is something."""
        changes = self._routes.take(content, asked_at)
        self.lacks_list |= changes
        self._lacks_hops |= changes
        # The way first, as its apps are visited as soon as the proxy has them. None while the lease allows no visits:
        # the standby removes it then.
        if leads and self._until() and (self._lacks_hops or not self._hops.is_put):
            if not await self._hops.put(self._routes.hops(self._own())):
                raise EngineUnavailable("apps of other members are not reached from here")
            self._lacks_hops = False
        if self.lacks_list or self._hops.lost != self._lost:
            lost = self._hops.lost
            await self._forwarder.put_list(self._routes.entries(lost=lost))
            self.lacks_list, self._lost = False, lost
        return changes

    def _until(self) -> int:
        """Return the time since 1970 up to which visits may be led directly; 0: not at all."""
        lease = self._lease()
        return self._routes.direct_until(lease) if lease is not None else 0

    async def _allow(self) -> None:
        if not (until := self._until()):
            await self._end()
            return
        if self._lacks_hops or not self._hops.is_put:
            raise EngineUnavailable("the way to apps of other members was removed meanwhile")
        if not self._is_allowed:
            log.info("plain visits are led directly routes=%d", len(self._routes.routes))
        # First: from here on nobody removes the way.
        self._is_allowed, self._confirmed_at = True, time.monotonic()
        await self._forwarder.allow_direct(until)

    async def _end(self) -> None:
        if self._is_allowed:
            self._is_allowed = False
            # A proxy that does not answer ends by itself.
            with suppress(EngineUnavailable):
                await self._forwarder.allow_direct(0)
