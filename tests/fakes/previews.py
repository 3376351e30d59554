"""Preview proxy in memory. It serves nothing: ``visit`` sets a host's counters."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping

from builderd.core.errors import EngineUnavailable
from builderd.previews.model import DomainAlias, PreviewActivity, PreviewLink, Route, RouteState
from builderd.previews.port import LostRoutes


class FakePreviews:
    """Implements ``ports.previews.Previews``. After ``break_down`` calls fail until ``start``; routes stay."""

    def __init__(self) -> None:
        self._running = False
        self._died = asyncio.Event()
        self._routes: dict[str, Route] = {}
        self._reported: asyncio.Queue[str] = asyncio.Queue()
        self._paused: set[str] = set()
        self._activity: dict[str, PreviewActivity] = {}
        self._domains: dict[str, tuple[str, str | None]] = {}
        self.wildcard = ""
        self.links: dict[str, PreviewLink] = {}
        #: Answers of the challenge path by token; lost when the proxy ends.
        self.challenges: dict[str, str] = {}
        #: Open requests by host.
        self.open: Counter[str] = Counter()
        #: Hosts whose paused requests were rejected.
        self.rejected_hosts: list[str] = []

    async def start(self, lost: LostRoutes | None = None) -> None:
        self._running = True
        self._died.clear()
        for route in await lost(self._routes.keys()) if lost is not None else ():
            self._routes[route.host] = route

    async def supervise(self) -> None:
        while True:
            await self._died.wait()
            await self.start()

    async def ready(self) -> bool:
        return self._running

    async def put(self, route: Route) -> None:
        self._need_running()
        self._routes[route.host] = route
        if route.state is RouteState.ASLEEP and route.host in self._paused:
            self._reported.put_nowait(route.host)
        elif route.state not in (RouteState.ASLEEP, RouteState.PAUSED):
            self._paused.discard(route.host)

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

    async def reject_visitors(self, host: str) -> None:
        self.rejected_hosts.append(host)

    async def open_requests(self, host: str) -> int:
        self._need_running()
        return self.open[host]

    async def put_domain(self, alias: DomainAlias) -> None:
        self._need_running()
        self._domains[alias.host] = (alias.preview_host, alias.fingerprint)

    async def remove_domain(self, host: str) -> None:
        self._need_running()
        self._domains.pop(host, None)

    async def domains(self) -> Mapping[str, tuple[str, str | None]]:
        self._need_running()
        return dict(self._domains)

    async def put_wildcard(self, certificate: str) -> None:
        self._need_running()
        self.wildcard = certificate

    async def refresh_links(self, load: Callable[[], Awaitable[Collection[PreviewLink]]]) -> None:
        self._need_running()
        self.links = {link.token_hash: link for link in await load()}

    async def put_challenge(self, token: str, answer: str) -> None:
        self._need_running()
        self.challenges[token] = answer

    async def remove_challenge(self, token: str) -> None:
        self._need_running()
        self.challenges.pop(token, None)

    async def down(self) -> None:
        self._running = False
        self._domains.clear()
        self.challenges.clear()
        self.wildcard = ""
        self._routes.clear()
        self._activity.clear()

    async def visitors(self) -> AsyncIterator[str]:
        self._need_running()
        while True:
            yield await self._reported.get()

    def pause_request(self, host: str) -> None:
        """Pause a request at the host until its route opens."""
        self._paused.add(host)
        self._reported.put_nowait(host)

    def visit(self, host: str, activity: PreviewActivity) -> None:
        """Set the host's counters."""
        self._activity[host] = activity

    def break_down(self) -> None:
        """End the proxy and its counters."""
        self._running = False
        self._died.set()
        self.challenges.clear()
        self._activity.clear()

    def _need_running(self) -> None:
        if not self._running:
            raise EngineUnavailable("the preview proxy does not run", retry_after=5)
