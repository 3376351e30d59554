"""Previews served by one HAProxy."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from builderd.adapters.previews.haproxy import activity, config, fence, guard, launch, pages, process
from builderd.adapters.previews.haproxy.certificate import Certificate
from builderd.adapters.previews.haproxy.domain_table import DomainTable
from builderd.adapters.previews.haproxy.link_table import LinkTable
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.paused_addresses import paused_at
from builderd.adapters.previews.haproxy.paused_requests import PAUSING_STATES, PausedRequests
from builderd.adapters.previews.haproxy.route_map import RouteMap, encode
from builderd.adapters.previews.haproxy.runtime_api import CommandRefused, ProxyBusy, ProxyGone
from builderd.adapters.previews.haproxy.workers import Workers
from builderd.domain.errors import EngineUnavailable
from builderd.domain.previews import DomainAlias, PreviewActivity, PreviewLink, Route, RouteState
from builderd.ports.previews import LostRoutes

log = logging.getLogger(__name__)

#: Routes that are put before other work of the event loop gets its turn.
ROUTES_AT_ONCE = 100
#: Delays between attempts to restart the proxy: the worker of a killed master still holds the port.
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.05, 2.0


class HaproxyPreviews:
    """Implements ``ports.previews.Previews`` with files in ``directory``. A call that needs a dead proxy restarts it.

    A route is written to the map file first and sent to the proxy second: after a crash in between, the next
    ``start`` makes the proxy's map equal to the file.
    """

    def __init__(self, directory: Path, options: ProxyOptions) -> None:
        self._options = options
        self._files = ProxyFiles(directory.absolute())
        self._lock = asyncio.Lock()
        self._workers = Workers(self._files)
        self._open_map: RouteMap | None = None
        self._domains = DomainTable(self._files, self._workers, options)
        self._links = LinkTable(self._files, self._workers)
        #: Held from before the links are loaded, so that an older state never replaces a newer one.
        self._loading_links = asyncio.Lock()
        #: Hosts whose route on disk the proxy may not have yet.
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
        return self._open_map is None or self._open_map.is_reserved(ip)

    def paused_at(self, ip: str) -> AbstractAsyncContextManager[None]:
        """Pause requests to the app at an address while the context lasts; stored routes stay as they are."""
        return nullcontext() if self._open_map is None else paused_at(self._open_map, ip, self._send_again)

    async def supervise(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            await self._wait_until_one_is_dead()
            try:
                await self.start()
            except EngineUnavailable as error:
                log.warning("preview proxy start failed, retrying delay=%g error=%s", delay, error.message)
                await asyncio.sleep(delay)
                delay = min(2 * delay, LAST_RETRY_SECONDS)
            else:
                delay = FIRST_RETRY_SECONDS
                await asyncio.sleep(FIRST_RETRY_SECONDS)

    async def _wait_until_one_is_dead(self) -> None:
        """Wait for the exit of the guard or of the master, whose workers exit with it."""
        files = self._files
        master, guard_pid = (guard.find_process(file, files) for file in (files.pid, files.guard_pid))
        if master is not None and guard_pid is not None:
            await guard.wait_until_one_ends(master, guard_pid)
            log.warning("preview proxy or its guard died, starting it again master=%d guard=%d", master, guard_pid)

    async def ready(self) -> bool:
        try:
            return bool(await process.started_with(self._files))
        except ProxyGone:
            return False

    async def put(self, route: Route) -> None:
        """Write the host's route to the map file and to the running proxy."""
        async with self._lock:
            new = route.host not in self._map.routes
            self._unapplied.add(route.host)
            self._map.put(route)
            self._paused.stop_rejecting(route.host)
            # Paused requests get the route itself, before the map has it.
            self._release(route)
            if route.state is RouteState.ASLEEP:
                self._paused.report_again(route.host)
            await self._apply(route.host, new=new)
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
                counted = await self._counters()
                # They would stay for COUNTER_TTL, and be read and parsed with each look at any host.
                gone = [host for host in counted if host not in known and not counted[host].open_connections]
                await self._workers.forget_counters(gone)
            except ProxyGone:
                await self._start()
                counted = {}
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
                await self._refresh_workers()
                await self._workers.ask(activity.AFTER_TURNS)
                answers = await self._workers.ask(activity.open_requests_command(host))
            except ProxyGone:
                await self._start()
                return 0
            return sum(one.open_connections for answer in answers for one in activity.parse(answer).values())

    async def put_domain(self, alias: DomainAlias) -> None:
        async with self._lock:
            await self._change(lambda: self._domains.put(alias))

    async def remove_domain(self, host: str) -> None:
        async with self._lock:
            if host in self._domains.installed:
                await self._change(lambda: self._domains.remove(host))

    async def domains(self) -> Mapping[str, tuple[str, str | None]]:
        assert self._map is not None
        return dict(self._domains.installed)

    async def put_wildcard(self, certificate: str) -> None:
        async with self._lock:
            await self._change(lambda: self._domains.put_wildcard(certificate))

    async def refresh_links(self, load: Callable[[], Awaitable[Collection[PreviewLink]]]) -> None:
        async with self._loading_links:
            links = await load()
            async with self._lock:
                await self._change(lambda: self._links.replace(links))

    async def put_link(self, link: PreviewLink) -> None:
        async with self._loading_links, self._lock:
            await self._change(lambda: self._links.put(link))

    async def remove_link(self, token_hash: str) -> None:
        async with self._loading_links, self._lock:
            await self._change(lambda: self._links.remove(token_hash))

    async def put_challenge(self, token: str, answer: str) -> None:
        async with self._lock:
            await self._change(lambda: self._domains.put_challenge(token, answer))

    async def remove_challenge(self, token: str) -> None:
        async with self._lock:
            await self._change(lambda: self._domains.remove_challenge(token))

    async def _change(self, change: Callable[[], Awaitable[None]]) -> None:
        """Make a change of domains in the proxy; a dead proxy is started first. Raises ``EngineUnavailable``."""
        assert self._map is not None
        try:
            try:
                await change()
            except ProxyGone:
                await self._start()
                await change()
        except (ProxyGone, ProxyBusy, CommandRefused) as error:
            raise EngineUnavailable(f"the preview proxy rejects a domain: {error}", retry_after=5) from error

    async def down(self) -> None:
        async with self._lock:
            if self._certificate_watch is not None:
                self._certificate_watch.cancel()
                self._certificate_watch = None
            await process.end(self._files)
            await fence.lift(self._files)
            await self._paused.close()
            if self._open_map is not None:
                self._open_map.close()
                self._open_map = None
            self._unapplied.clear()
            self._domains.installed.clear()
            shutil.rmtree(self._files.directory, ignore_errors=True)

    @property
    def _map(self) -> RouteMap:
        if self._open_map is None:
            raise EngineUnavailable(
                "the preview proxy does not run: it was not started, or was taken down", retry_after=5
            )
        return self._open_map

    async def _start(self, lost: LostRoutes | None = None) -> None:
        files = self._files
        process.check_paths(files)
        if fence.is_past(files):
            raise EngineUnavailable(
                "the preview proxy may not start: the service did not renew its lease, and another one may work now",
                retry_after=5,
            )
        files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.jail.mkdir(mode=0o711, exist_ok=True)
        files.jail.chmod(0o711)
        routes = self._open_map or RouteMap(files.routes)
        for number, route in enumerate(await lost(routes.with_tenant()) if lost is not None else ()):
            routes.put_lost(route)
            if number % ROUTES_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._domains.load()
        self._links.load()
        host = process.host(self._options)
        try:
            await self._paused.open(host.user)
            async with guard.start_lock(files):
                await launch.adopt_or_start(self._options, files, config.render(self._options, files, host))
            await self._workers.refresh()
            await self._workers.sync(routes.all_in_force())
            await self._domains.sync()
            await self._links.sync()
            await guard.start(files, process.command(process.program(self._options), files))
            self._open_map = routes
            self._unapplied.clear()
        except (ProxyGone, ProxyBusy, CommandRefused) as error:
            raise EngineUnavailable(f"the preview proxy does not work: {error}", retry_after=5) from error
        finally:
            if routes is not self._open_map:
                routes.close()
        self._watch_certificate()

    async def _apply(self, host: str, *, new: bool = False) -> None:
        """Send a host's route to the proxy. A proxy that must be started first reads it from the file."""
        routes, route = self._map, self._map.routes.get(host)
        try:
            await (self._workers.remove(host) if route is None else self._workers.put(routes.in_force(route), new=new))
        except ProxyGone:
            await self._start()
        except CommandRefused as error:
            raise EngineUnavailable(f"the preview proxy rejects a route: {error}", retry_after=5) from error
        self._unapplied.discard(host)

    def _release(self, route: Route) -> None:
        """Release the host's paused requests with its route, unless that pauses."""
        if (route := self._map.in_force(route)).state not in PAUSING_STATES:
            self._paused.release(route.host, encode(route))

    async def _send_again(self, host: str) -> None:
        async with self._lock:
            if self._open_map is None or (route := self._open_map.routes.get(host)) is None:
                return
            self._unapplied.add(host)
            await self._apply(host)
            self._release(route)

    async def _refresh_workers(self) -> None:
        """Find replaced workers. A reload may have read the file just before a route was put, so sync after one."""
        if await self._workers.refresh():
            await self._workers.sync(self._map.all_in_force())
            await self._domains.sync()
            await self._links.sync()

    async def _counters(self) -> dict[str, PreviewActivity]:
        """Return the sum of the counters of all workers, replaced ones included."""
        await self._refresh_workers()
        answers = [answer for command in activity.COMMANDS for answer in await self._workers.ask(command)]
        return activity.total(activity.parse(answer) for answer in answers)

    def _watch_certificate(self) -> None:
        file = self._options.certificate
        if file is not None and (self._certificate_watch is None or self._certificate_watch.done()):
            watch = Certificate(file, self._files.admin_socket).watch()
            self._certificate_watch = asyncio.create_task(watch, name="certificate of the previews")
