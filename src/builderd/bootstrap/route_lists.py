"""List of open routes: the service that works sends it to its standbys, and each of them keeps it.

``domain.route_list`` says for what, and why two tenants never meet by it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Path

from builderd.adapters.previews.haproxy.previews import HaproxyPreviews
from builderd.adapters.previews.haproxy.route_map import encode
from builderd.api.server.answers import failure
from builderd.domain.errors import BadRequest, EngineUnavailable, TooLarge
from builderd.domain.previews import Address, Route, RouteState, is_host
from builderd.domain.route_list import (
    DIRECT_LEASE_SECONDS,
    DIRECT_PROXY_SECONDS,
    DIRECT_SECONDS,
    EXCHANGE_SECONDS,
    LEASE_SECONDS,
    LIST_SECONDS,
    ListedRoute,
)
from builderd.domain.standby_reports import StandbyReport, decode

#: Paths at which the service that works sends its list, and at which a standby reports beside its question for it.
PATH, EXCHANGE_PATH = "/routes", "/exchange"
#: Most bytes of a report: 100,000 visited hosts have some twenty.
MAX_REPORT = 32_000_000
#: Bytes of a report above which it is parsed beside the event loop.
LONG_REPORT = 65_536


class RouteSource:
    """Routes of the service that works. ``next_hop``: as of the engine; ``own``: the address of this member."""

    def __init__(
        self, previews: HaproxyPreviews, term: int, next_hop: Callable[[str], str], own: Callable[[], str]
    ) -> None:
        self._previews = previews
        self._term = term
        self._next_hop = next_hop
        self._own = own
        #: Versions of another run say nothing about this one's.
        self._run = secrets.token_hex(8)

    def app(self) -> Starlette:
        """Return the app that answers standbys, and nobody else: its socket is behind the check of who they are."""

        async def routes(request: Request) -> Response:
            try:
                return JSONResponse(self.answer(self._known(request.query_params.get("since", ""))))
            except EngineUnavailable as error:
                return failure(error).response()

        async def exchange(request: Request) -> Response:
            at, content = time.monotonic(), bytearray()
            async for piece in request.stream():
                content += piece
                if len(content) > MAX_REPORT:
                    return failure(TooLarge(f"A report has {MAX_REPORT} bytes at most.")).response()
            try:
                # The first one after a start has all visited hosts: seconds of work for 100,000.
                is_long = len(content) > LONG_REPORT
                report = await asyncio.to_thread(decode, bytes(content)) if is_long else decode(bytes(content))
                return JSONResponse(await self.exchange(report, at))
            except ValueError as error:
                return failure(BadRequest(f"The report is not understood: {error}.")).response()
            except EngineUnavailable as error:
                return failure(error).response()

        return Starlette(routes=[Path(PATH, routes), Path(EXCHANGE_PATH, exchange, methods=["POST"])])

    async def exchange(self, report: StandbyReport, at: float) -> dict[str, Any]:
        """Take a standby's report, and answer once a route is closed, after ``EXCHANGE_SECONDS`` at the latest.

        Raises ``EngineUnavailable``; the standby leads no visits by such an answer.
        """
        standbys, version = self._previews.standbys, self._known(report.version)
        hosts = self._previews.hosts
        standbys.take(report, at, knows_run=version is not None, hosts=hosts)
        if version is not None and report.leads:
            await standbys.news(report.standby, EXCHANGE_SECONDS)
        routes = self.answer(version)
        # At once: no route is closed between both.
        return routes | standbys.answer(report.standby, at, leads=report.leads)

    def _known(self, text: str) -> int | None:
        """Return the version of this run that the text names, None for none."""
        run, _, version = text.partition("-")
        return int(version) if run == self._run and version.isascii() and version.isdecimal() else None

    def answer(self, version: int | None) -> dict[str, Any]:
        """Return the open routes that were changed after a version of this run; None: all."""
        version, is_whole, changed = self._previews.routes_since(version)
        routes = [one for one in changed.values() if one is not None]
        entries = {one.host: self._entry(one, one.destination) for one in routes if one.destination is not None}
        return {
            "term": self._term,
            "version": f"{self._run}-{version}",
            "whole": is_whole,
            "routes": list(entries.values()),
            "closed": [] if is_whole else [host for host in changed if host not in entries],
        }

    def _entry(self, route: Route, address: Address) -> list[Any]:
        via = self._next_hop(address.ip) or self._own()
        return [route.host, address.ip, address.port, route.token_hash is None, route.h2c, via]


@dataclass(frozen=True, slots=True)
class Moment:
    """A time by two clocks: since the boot, which nobody sets, and since 1970, which the proxy can read, too."""

    boot: float = field(default_factory=lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
    wall: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class SeenLease:
    """The lease as a standby has read it. ``is_over``: its owner has ended, or renews it no more. ``at``: before.

    Never over for a service that does not stand by for the owner, such as one with another key.
    """

    term: int
    is_over: bool
    at: Moment


@dataclass(frozen=True, slots=True)
class Told:
    """Part of an answer to a report beside the routes (``adapters.previews.haproxy.standbys``)."""

    mark: int = 0
    asked: Collection[str] = ()
    recount: bool = True


class RouteList:
    """A standby's list of the open routes of the service that works."""

    def __init__(self) -> None:
        self.routes: dict[str, ListedRoute] = {}
        self.told = Told()
        #: The term of the service that told it.
        self.term: int | None = None
        self._version = ""
        self._asked_at: Moment | None = None

    @property
    def query(self) -> str:
        """Return the path by which changes are asked for."""
        return f"{PATH}?since={self._version}"

    def take(self, content: bytes, asked_at: Moment) -> bool:
        """Take an answer over; return True if it changes the list. Raises ``EngineUnavailable`` for what is none."""
        try:
            found = json.loads(content)
            routes = [_listed(*one) for one in found["routes"]]
            closed, term, version = list(found["closed"]), int(found["term"]), str(found["version"])
            is_whole = bool(found["whole"])
            told = Told(int(found.get("mark", 0)), [*map(_host, found.get("asked", ()))], found.get("recount") is True)
        except (ValueError, KeyError, TypeError) as error:
            raise EngineUnavailable(f"the list of its routes is not understood: {error!r}") from None
        before = self.routes
        if is_whole:
            self.routes = {}
        for host in closed:
            self.routes.pop(host, None)
        self.routes |= {one.host: one for one in routes}
        self.term, self._version, self._asked_at, self.told = term, version, asked_at, told
        return (is_whole and before != self.routes) or bool(routes or closed)

    def is_of(self, term: int, at: Moment | None = None) -> bool:
        """Return True if the service of this term told it, no longer ago than it may be used."""
        now = at or Moment()
        return term == self.term and self._asked_at is not None and now.boot - self._asked_at.boot < LIST_SECONDS

    def until(self, lease: SeenLease) -> int:
        """Return the time since 1970 up to which the list may be used, as far as is known now; 0: not at all."""
        asked, now = self._asked_at, Moment()
        if asked is None or not lease.is_over or not self.is_of(lease.term, now):
            return 0
        if now.boot - lease.at.boot >= LEASE_SECONDS:
            return 0
        return int(min(asked.wall + LIST_SECONDS, lease.at.wall + LEASE_SECONDS))

    def direct_until(self, lease: SeenLease) -> int:
        """Return the time since 1970 up to which visits may be led directly: its service works; 0: not at all."""
        asked, now = self._asked_at, Moment()
        if asked is None or lease.is_over or lease.term != self.term:
            return 0
        is_late = now.boot - asked.boot >= DIRECT_PROXY_SECONDS or now.boot - lease.at.boot >= DIRECT_LEASE_SECONDS
        return 0 if is_late else int(asked.wall + DIRECT_SECONDS)

    @property
    def version(self) -> str:
        """Return the version of the list, as its service names it."""
        return self._version

    @property
    def run(self) -> str:
        """Return the run of the service that told it, "" before one did."""
        return self._version.partition("-")[0]

    def entries(self, hosts: Collection[str] | None = None, *, lost: Collection[str] = ()) -> dict[str, str]:
        """Return the proxy's entries of the routes that a standby may serve: with ``hosts``, of those alone.

        ``lost``: addresses that are not reached from here.
        """
        plain = {host: one for host, one in self.routes.items() if one.is_plain and one.address.ip not in lost}
        chosen = {host: one for host, one in plain.items() if hosts is None or host in hosts}
        return {host: encode(Route(host, RouteState.OPEN, one.address)) for host, one in chosen.items()}

    def hops(self, own: str | None) -> Mapping[str, str]:
        """Return the way to each app that is not on this member: its address, and that of its member."""
        return {one.address.ip: one.via for one in self.routes.values() if one.via not in ("", own)}


def _host(text: str) -> str:
    """Check a host that becomes a part of the proxy's commands."""
    if not is_host(text):
        raise ValueError(f"not a host: {text!r}")
    return text


def _listed(host: str, ip: str, port: int, public: bool, h2c: bool, via: str) -> ListedRoute:
    if not isinstance(ip, str) or not isinstance(via, str):
        raise TypeError(f"no text: {ip!r}, {via!r}")
    address = Address(ip, port)
    # It becomes a part of the proxy's commands: checked as any route.
    Route(host, RouteState.OPEN, address)
    if via and not all(part.isdecimal() for part in via.split(".")):
        raise ValueError(f"no address of a member: {via!r}")
    return ListedRoute(host, address, public is True, h2c is True, via)
