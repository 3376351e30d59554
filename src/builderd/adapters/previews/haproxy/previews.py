"""The previews of the port, through one HAProxy."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path

from builderd.adapters.previews.haproxy import activity, config, guarding, hold, pages, process, runtime_api
from builderd.adapters.previews.haproxy.certificate import Certificate
from builderd.adapters.previews.haproxy.config import Configuration
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.route_map import RouteMap, encode
from builderd.adapters.previews.haproxy.runtime_api import CommandRefused, ProxyGone
from builderd.adapters.previews.haproxy.waiting import HOLDING, Waiting
from builderd.domain.errors import EngineUnavailable
from builderd.domain.previews import PreviewActivity, Route, RouteState


class HaproxyPreviews:
    """``directory`` is the proxy's own. A proxy that has died is started again by the first call that needs it.

    A route is written to the map file first and given to the proxy then: whatever is killed in between, the next
    ``start`` makes the proxy agree with the file.
    """

    def __init__(self, directory: Path, options: ProxyOptions) -> None:
        self._options = options
        self._files = ProxyFiles(directory.absolute())
        self._lock = asyncio.Lock()
        self._open_map: RouteMap | None = None
        self._waiting = Waiting(self._files.wake_socket)
        self._certificate_watch: asyncio.Task[None] | None = None

    async def start(self, expected: Iterable[Route] = ()) -> None:
        async with self._lock:
            await self._start(expected)

    async def ready(self) -> bool:
        try:
            return bool(await process.started_with(self._files))
        except ProxyGone:
            return False

    async def put(self, route: Route) -> None:
        files = self._files
        async with self._lock:
            change = runtime_api.set_entry if route.host in self._map.routes else runtime_api.add_entry
            self._map.put(route)
            # Who waits is given the route itself, and need not wait for the map.
            if route.state not in HOLDING:
                self._waiting.tell(route.host, encode(route))
            elif route.state is RouteState.ASLEEP:
                self._waiting.tell_again(route.host)
            await self._steer(lambda: change(files.admin_socket, files.routes, route.host, encode(route)))
            # Who came meanwhile waits as well.
            if route.state not in HOLDING:
                self._waiting.tell(route.host, encode(route))

    async def get(self, host: str) -> Route | None:
        return self._map.routes.get(host)

    async def remove(self, host: str) -> None:
        files = self._files
        async with self._lock:
            if host in self._map.routes:
                self._map.remove(host)
                await self._steer(lambda: runtime_api.delete_entry(files.admin_socket, files.routes, host))

    async def routes(self) -> Mapping[str, Route]:
        return dict(self._map.routes)

    async def activity(self) -> Mapping[str, PreviewActivity]:
        async with self._lock:
            known = self._map.routes
            try:
                counted = await self._counters()
            except ProxyGone:
                await self._start()
                counted = {}
            return {host: one for host, one in counted.items() if host in known}

    def visitors(self) -> AsyncIterator[str]:
        return self._waiting.hosts()

    async def turn_away(self, host: str) -> None:
        self._waiting.tell(host, f"{pages.FULL.name}|")

    async def open_requests(self, host: str) -> int:
        async with self._lock:
            if host not in self._map.routes:
                return 0
            try:
                return await self._open_requests(host)
            except ProxyGone:
                await self._start()
                return 0

    async def down(self) -> None:
        async with self._lock:
            if self._certificate_watch is not None:
                self._certificate_watch.cancel()
                self._certificate_watch = None
            await process.end(self._files)
            await self._waiting.close()
            if self._open_map is not None:
                self._open_map.close()
                self._open_map = None
            shutil.rmtree(self._files.directory, ignore_errors=True)

    @property
    def _map(self) -> RouteMap:
        if self._open_map is None:
            raise EngineUnavailable("the preview proxy does not run: it was not started, or was taken down")
        return self._open_map

    async def _start(self, expected: Iterable[Route] = ()) -> None:
        files = self._files
        process.check_place(files)
        files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.jail.mkdir(mode=0o711, exist_ok=True)
        files.jail.chmod(0o711)
        routes = self._open_map or RouteMap(files.routes)
        for route in expected:
            if route.host not in routes.routes:
                routes.put(route)
        host = process.host(self._options)
        try:
            await self._waiting.open(host.user)
            async with guarding.turn(files):
                await self._bring_up(config.render(self._options, files, host))
            await self._agree(routes)
            await guarding.begin(self._files, process.command(process.program(self._options), self._files))
            self._open_map = routes
        except (ProxyGone, CommandRefused) as error:
            raise EngineUnavailable(f"the preview proxy does not work: {error}") from error
        finally:
            if routes is not self._open_map:
                routes.close()
        self._watch_certificate()

    async def _bring_up(self, wanted: Configuration) -> None:
        """Adopt the running proxy, have it reload what has changed, or start one."""
        if await process.find(self._files) is not None:
            try:
                if await process.started_with(self._files) != wanted.digest:
                    await self._reload(wanted)
            except ProxyGone:
                # The master is left without a worker that answers: it is on its way out.
                await process.end(self._files)
            else:
                return
        self._write(wanted)
        await process.start(self._options, self._files)

    async def _reload(self, wanted: Configuration) -> None:
        before = self._files.config.read_text() if self._files.config.exists() else None
        self._write(wanted)
        try:
            await process.reload(self._options, self._files)
        except EngineUnavailable:
            if before is not None:
                _write(self._files.config, before)
            raise

    def _write(self, wanted: Configuration) -> None:
        self._files.pages.mkdir(mode=0o700, exist_ok=True)
        for name, text in pages.documents().items():
            _write(self._files.pages / name, text)
        _write(self._files.hold, hold.script())
        _write(self._files.config, wanted.text)

    async def _agree(self, routes: RouteMap) -> None:
        """Bring the running map to what the file says."""
        socket, table = self._files.admin_socket, self._files.routes
        have = await runtime_api.entries(socket, table)
        for host in have.keys() - routes.routes.keys():
            await runtime_api.delete_entry(socket, table, host)
        for host, route in routes.routes.items():
            if have.get(host) != encode(route):
                await runtime_api.set_entry(socket, table, host, encode(route))

    async def _steer(self, command: Callable[[], Awaitable[None]]) -> None:
        """Carry out a change that the file has already; a proxy that has to be started reads it there."""
        try:
            await command()
        except ProxyGone:
            await self._start()
        except CommandRefused as error:
            raise EngineUnavailable(f"the preview proxy refuses a route: {error}") from error

    async def _counters(self) -> dict[str, PreviewActivity]:
        """Of the worker, and of earlier ones that still serve what was open when a reload replaced them."""
        files = self._files
        found = await process.find(files)
        answers = [await runtime_api.ask(files.admin_socket, command) for command in activity.COMMANDS]
        for pid in found.old_workers if found else ():
            for command in activity.COMMANDS:
                with contextlib.suppress(ProxyGone):
                    answers.append(await runtime_api.ask(files.master_socket, f"@!{pid} {command}"))
        return activity.total(activity.parse(answer) for answer in answers)

    async def _open_requests(self, host: str) -> int:
        """Of the worker, and of earlier ones that finish what they were asked before a reload."""
        files, command = self._files, activity.open_of(host)
        found = await process.find(files)
        answers = [await runtime_api.ask(files.admin_socket, command)]
        for pid in found.old_workers if found else ():
            with contextlib.suppress(ProxyGone):
                answers.append(await runtime_api.ask(files.master_socket, f"@!{pid} {command}"))
        return sum(one.open_connections for answer in answers for one in activity.parse(answer).values())

    def _watch_certificate(self) -> None:
        file = self._options.certificate
        if file is not None and (self._certificate_watch is None or self._certificate_watch.done()):
            watch = Certificate(file, self._files.admin_socket).watch()
            self._certificate_watch = asyncio.create_task(watch, name="certificate of the previews")


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
