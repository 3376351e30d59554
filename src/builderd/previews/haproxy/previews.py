"""Previews served by one HAProxy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from pathlib import Path

from builderd.core.errors import EngineUnavailable
from builderd.linux import atomic_files
from builderd.previews.haproxy import config, counters, pages, process, runtime_api
from builderd.previews.haproxy.domain_table import DomainTable, watch_certificate
from builderd.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.previews.haproxy.pause import PAUSING_STATES, PausedRequests
from builderd.previews.haproxy.runtime_api import CommandRefused, ProxyGone, RouteMap, encode
from builderd.previews.model import DomainAlias, PreviewActivity, PreviewLink, Route, RouteState
from builderd.previews.port import LostRoutes

log = logging.getLogger(__name__)

#: Routes that are put before other work of the event loop gets its turn.
ROUTES_AT_ONCE = 100
#: Delays between attempts to restart the proxy: the worker of a killed master still has the port.
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.05, 2.0


class HaproxyPreviews:
    """Implements ``ports.previews.Previews`` with files in ``directory``. A call that needs a dead proxy restarts it.

    Routes and links are in the memory of the proxy, from which the next service reads them. Their files are written
    before the proxy starts or reloads, and emptied after it.
    """

    def __init__(self, directory: Path, options: ProxyOptions) -> None:
        self._options = options
        self._files = ProxyFiles(directory.absolute())
        self._lock = asyncio.Lock()
        self._socket = self._files.admin_socket
        self._known: RouteMap | None = None
        self._domains = DomainTable(self._files, options)
        #: Links to private previews: sha256 of the token → ``host|port|end``.
        self._links: dict[str, str] = {}
        #: Taken before the links are loaded, so that an older state never replaces a newer one.
        self._loading_links = asyncio.Lock()
        #: Hosts whose route the proxy may not have yet.
        self._unapplied: set[str] = set()
        self._paused = PausedRequests(self._files.wake_socket)
        self._certificate_watch: asyncio.Task[None] | None = None

    async def start(self, lost: LostRoutes | None = None) -> None:
        async with self._lock:
            await self._start(lost)

    def is_reserved(self, ip: str) -> bool:
        """Return True for an address that a route leads to: no other app may get it.

        Any may be one before the routes are known.
        """
        return self._known is None or self._known.is_reserved(ip)

    async def supervise(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            master = process.find_process(self._files.pid, self._files)
            if master is not None:
                await master.wait()
                log.warning("preview proxy died, starting it again pid=%d", master.pid)
            try:
                await self.start()
            except EngineUnavailable as error:
                log.warning("preview proxy start failed, retrying delay=%g error=%s", delay, error.message)
                await asyncio.sleep(delay)
                delay = min(2 * delay, LAST_RETRY_SECONDS)
            else:
                delay = FIRST_RETRY_SECONDS
                await asyncio.sleep(FIRST_RETRY_SECONDS)

    async def ready(self) -> bool:
        try:
            return bool((await process.find_worker(self._files))[0])
        except ProxyGone:
            return False

    async def put(self, route: Route) -> None:
        async with self._lock:
            self._unapplied.add(route.host)
            self._map.put(route)
            self._paused.stop_rejecting(route.host)
            # Paused requests get the route itself, before the map has it.
            self._release(route)
            if route.state is RouteState.ASLEEP:
                self._paused.report_again(route.host)
            await self._apply(route.host)
            # Requests that arrived while the map was changed are paused as well.
            self._release(route)

    async def get(self, host: str) -> Route | None:
        if host in self._unapplied:
            # The change is in progress, or its caller was cancelled before the proxy had it.
            async with self._lock:
                if host in self._unapplied:
                    await self._apply(host)
        return self._map.routes.get(host)

    async def remove(self, host: str) -> None:
        async with self._lock:
            if host in self._map.routes or host in self._unapplied:
                self._unapplied.add(host)
                self._map.remove(host)
                await self._apply(host)

    async def routes(self) -> Mapping[str, Route]:
        return dict(self._map.routes)

    async def activity(self) -> Mapping[str, PreviewActivity]:
        async with self._lock:
            known = self._map.routes
            try:
                counted = counters.parse(await self._ask(counters.SHOW))
                # They would stay for COUNTER_TTL, and be read and parsed with each look at any host.
                gone = [host for host in counted if host not in known and not counted[host].open_connections]
                for line in runtime_api.command_lines(f"clear table activity key {host}" for host in gone):
                    await self._ask(line)
            except ProxyGone:
                await self._start()
                return {}
            return {host: one for host, one in counted.items() if host in known}

    def visitors(self) -> AsyncIterator[str]:
        return self._paused.hosts()

    async def reject_visitors(self, host: str) -> None:
        self._paused.reject(host, f"{pages.FULL.name}|")

    async def open_requests(self, host: str) -> int:
        async with self._lock:
            if host not in self._map.routes:
                return 0
            try:
                await self._ask(counters.AFTER_TURNS)
                # In this order: a stream that ends in between is counted, and while requests pause none begins.
                requests = counters.open_in(await self._ask(f"show table activity key {host}"))
                streams = counters.open_in(await self._ask(f"show table streams key {host}"))
            except ProxyGone:
                await self._start()
                return 0
            return max(0, requests - streams)

    async def put_domain(self, alias: DomainAlias) -> None:
        async with self._lock:
            await self._change(lambda: self._domains.put(alias))

    async def remove_domain(self, host: str) -> None:
        async with self._lock:
            if host in self._domains.installed:
                await self._change(lambda: self._domains.remove(host))

    async def domains(self) -> Mapping[str, tuple[str, str | None]]:
        return dict(self._domains.installed)

    async def put_wildcard(self, certificate: str) -> None:
        async with self._lock:
            await self._change(lambda: self._domains.put_wildcard(certificate))

    async def refresh_links(self, load: Callable[[], Awaitable[Collection[PreviewLink]]]) -> None:
        async with self._loading_links:
            wanted = {link.token_hash: link.entry for link in await load()}
            async with self._lock:
                if wanted != self._links:
                    self._links = wanted
                    await self._change(lambda: runtime_api.sync_entries(self._socket, self._files.links, wanted))

    async def put_challenge(self, token: str, answer: str) -> None:
        async with self._lock:
            await self._change(lambda: self._domains.put_challenge(token, answer))

    async def remove_challenge(self, token: str) -> None:
        async with self._lock:
            await self._change(lambda: self._domains.remove_challenge(token))

    async def _ask(self, command: str) -> str:
        return await runtime_api.ask(self._socket, command)

    async def _change(self, change: Callable[[], Awaitable[None]]) -> None:
        """Make a change of domains or links in the proxy; a dead one is started first. Raises ``EngineUnavailable``."""
        if self._known is None:
            raise _not_started()
        try:
            try:
                await change()
            except ProxyGone:
                await self._start()
                await change()
        except (ProxyGone, CommandRefused) as error:
            raise EngineUnavailable(f"the preview proxy rejects a change: {error}", retry_after=5) from error

    async def down(self) -> None:
        async with self._lock:
            if self._certificate_watch is not None:
                self._certificate_watch.cancel()
                self._certificate_watch = None
            await self._paused.close()
            await process.take_down(self._files)
            self._known = None
            self._unapplied.clear()
            self._domains.installed.clear()
            self._links.clear()

    @property
    def _map(self) -> RouteMap:
        if self._known is None:
            raise _not_started()
        return self._known

    async def _start(self, lost: LostRoutes | None = None) -> None:
        files = self._files
        process.check_paths(files)
        if process.is_past(files):
            raise EngineUnavailable(
                "the preview proxy may not start: the service did not renew its lease, and another one may work now",
                retry_after=5,
            )
        files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.jail.mkdir(mode=0o711, exist_ok=True)
        files.jail.chmod(0o711)
        try:
            routes = self._known or await self._read_running()
            for number, route in enumerate(await lost(routes.routes) if lost is not None else ()):
                routes.put(route)
                if number % ROUTES_AT_ONCE == 0:
                    await asyncio.sleep(0)
            self._domains.load()
            _write_map(files.routes, routes.values())
            _write_map(files.links, self._links)
            host = process.host(self._options)
            await self._paused.open(host.user)
            await process.adopt_or_start(self._options, files, config.render(self._options, files, host))
            await runtime_api.sync_entries(self._socket, files.routes, routes.values())
            await runtime_api.sync_entries(self._socket, files.links, self._links)
            await self._domains.sync()
            # Emptied once read: a reload by hand ends in 404, and not at what has an old route's address by then.
            _write_map(files.routes, {})
            _write_map(files.links, {})
        except (ProxyGone, CommandRefused) as error:
            raise EngineUnavailable(f"the preview proxy does not work: {error}", retry_after=5) from error
        self._known = routes
        self._unapplied.clear()
        file = self._options.certificate
        if file is not None and (self._certificate_watch is None or self._certificate_watch.done()):
            watch = watch_certificate(file, self._socket)
            self._certificate_watch = asyncio.create_task(watch, name="certificate of the previews")

    async def _read_running(self) -> RouteMap:
        """Return the routes of a proxy that an earlier service left running, and take over its links."""
        try:
            if process.find_process(self._files.pid, self._files) is not None:
                routes = await runtime_api.entries(self._socket, self._files.routes)
                self._links = await runtime_api.entries(self._socket, self._files.links)
                return RouteMap(routes)
        except ProxyGone:
            log.info("preview proxy without a worker, its routes are made anew")
        return RouteMap({})

    async def _apply(self, host: str) -> None:
        """Send a host's route to the proxy. One that must be started first reads it from the file."""
        route = self._map.routes.get(host)
        try:
            if route is None:
                await runtime_api.delete_entry(self._socket, self._files.routes, host)
            else:
                await runtime_api.set_entry(self._socket, self._files.routes, host, encode(route))
        except ProxyGone:
            await self._start()
        except CommandRefused as error:
            raise EngineUnavailable(f"the preview proxy rejects a route: {error}", retry_after=5) from error
        self._unapplied.discard(host)

    def _release(self, route: Route) -> None:
        """Release the host's paused requests with its route, unless that pauses."""
        if route.state not in PAUSING_STATES:
            self._paused.release(route.host, encode(route))


def _not_started() -> EngineUnavailable:
    message = "the preview proxy does not run: it was not started, or was taken down"
    return EngineUnavailable(message, retry_after=5)


def _write_map(file: Path, entries: Mapping[str, str]) -> None:
    atomic_files.replace(file, "".join(f"{key} {value}\n" for key, value in entries.items()).encode(), mode=0o644)
