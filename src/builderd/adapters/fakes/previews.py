"""Previews in memory. Nothing is served: ``visit`` says what a visitor of a host would have been counted as."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping

from builderd.domain.errors import EngineUnavailable
from builderd.domain.previews import PreviewActivity, Route, RouteState


class FakePreviews:
    """``break_down`` makes every call fail until ``start``; the routes stay, as those of a proxy that was killed do."""

    def __init__(self) -> None:
        self._running = False
        self._died = asyncio.Event()
        self._routes: dict[str, Route] = {}
        self._knocks: asyncio.Queue[str] = asyncio.Queue()
        self._waiting: set[str] = set()
        self._activity: dict[str, PreviewActivity] = {}
        #: Requests that the app of a host works on.
        self.open: Counter[str] = Counter()
        #: Hosts whose visitors were told that there is no room.
        self.turned_away: list[str] = []

    async def start(self, expected: Iterable[Route] = ()) -> None:
        self._running = True
        self._died.clear()
        for route in expected:
            self._routes.setdefault(route.host, route)

    async def keep_up(self) -> None:
        while True:
            await self._died.wait()
            await self.start()

    async def ready(self) -> bool:
        return self._running

    async def put(self, route: Route) -> None:
        self._need_running()
        self._routes[route.host] = route
        if route.state is RouteState.ASLEEP and route.host in self._waiting:
            self._knocks.put_nowait(route.host)
        elif route.state not in (RouteState.ASLEEP, RouteState.HELD):
            self._waiting.discard(route.host)

    async def get(self, host: str) -> Route | None:
        self._need_running()
        return self._routes.get(host)

    async def remove(self, host: str) -> None:
        self._need_running()
        self._routes.pop(host, None)
        self._activity.pop(host, None)

    async def routes(self) -> Mapping[str, Route]:
        self._need_running()
        return dict(self._routes)

    async def activity(self) -> Mapping[str, PreviewActivity]:
        self._need_running()
        return dict(self._activity)

    async def turn_away(self, host: str) -> None:
        self.turned_away.append(host)

    async def open_requests(self, host: str) -> int:
        self._need_running()
        return self.open[host]

    async def down(self) -> None:
        self._running = False
        self._routes.clear()
        self._activity.clear()

    async def visitors(self) -> AsyncIterator[str]:
        self._need_running()
        while True:
            yield await self._knocks.get()

    def knock(self, host: str) -> None:
        """A visitor waits for the host, until that leads somewhere."""
        self._waiting.add(host)
        self._knocks.put_nowait(host)

    def visit(self, host: str, activity: PreviewActivity) -> None:
        """From now on the host's counters say this."""
        self._activity[host] = activity

    def break_down(self) -> None:
        """The proxy dies, and with it its counters."""
        self._running = False
        self._died.set()
        self._activity.clear()

    def _need_running(self) -> None:
        if not self._running:
            raise EngineUnavailable("the preview proxy does not run", retry_after=5)
