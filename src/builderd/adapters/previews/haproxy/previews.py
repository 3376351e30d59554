"""The previews of the port, through one HAProxy."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

from builderd.adapters.previews.haproxy import activity, config, guarding, hold, pages, process
from builderd.adapters.previews.haproxy.certificate import Certificate
from builderd.adapters.previews.haproxy.config import Configuration
from builderd.adapters.previews.haproxy.options import ProxyFiles, ProxyOptions
from builderd.adapters.previews.haproxy.route_map import RouteMap, encode
from builderd.adapters.previews.haproxy.runtime_api import CommandRefused, ProxyGone
from builderd.adapters.previews.haproxy.waiting import HOLDING, Waiting
from builderd.adapters.previews.haproxy.workers import Workers
from builderd.domain.errors import EngineUnavailable
from builderd.domain.previews import PreviewActivity, Route, RouteState

log = logging.getLogger(__name__)

#: Between two tries to start the proxy again: the worker of a master that was killed holds the port for moments.
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.05, 2.0


class HaproxyPreviews:
    """``directory`` is the proxy's own. A proxy that has died is started again by the first call that needs it.

    A route is written to the map file first and given to the proxy then: whatever is killed in between, the next
    ``start`` makes the proxy agree with the file.
    """

    def __init__(self, directory: Path, options: ProxyOptions) -> None:
        self._options = options
        self._files = ProxyFiles(directory.absolute())
        self._lock = asyncio.Lock()
        self._workers = Workers(self._files)
        self._open_map: RouteMap | None = None
        #: Hosts whose route on disk the proxy may not have yet.
        self._untold: set[str] = set()
        self._waiting = Waiting(self._files.wake_socket)
        self._certificate_watch: asyncio.Task[None] | None = None

    async def start(self, expected: Iterable[Route] = ()) -> None:
        async with self._lock:
            await self._start(expected)

    async def keep_up(self) -> None:
        delay = FIRST_RETRY_SECONDS
        while True:
            await self._until_one_is_dead()
            try:
                await self.start()
            except EngineUnavailable as error:
                log.warning("preview proxy start failed, retrying in %g s error=%s", delay, error.message)
                await asyncio.sleep(delay)
                delay = min(2 * delay, LAST_RETRY_SECONDS)
            else:
                delay = FIRST_RETRY_SECONDS
                await asyncio.sleep(FIRST_RETRY_SECONDS)

    async def _until_one_is_dead(self) -> None:
        """The master, with which its workers end, or the guard."""
        master, guard = (guarding.running(file, self._files) for file in (self._files.pid, self._files.guard))
        if master is not None and guard is not None:
            await guarding.until_one_ends(master, guard)
            log.warning("preview proxy or its guard died, starting it again master=%d guard=%d", master, guard)

    async def ready(self) -> bool:
        try:
            return bool(await process.started_with(self._files))
        except ProxyGone:
            return False

    async def put(self, route: Route) -> None:
        async with self._lock:
            new = route.host not in self._map.routes
            self._untold.add(route.host)
            self._map.put(route)
            self._waiting.let_in(route.host)
            # Who waits is given the route itself, and need not wait for the map.
            if route.state not in HOLDING:
                self._waiting.tell(route.host, encode(route))
            elif route.state is RouteState.ASLEEP:
                self._waiting.tell_again(route.host)
            await self._tell(route.host, new=new)
            # Who came meanwhile waits as well.
            if route.state not in HOLDING:
                self._waiting.tell(route.host, encode(route))

    async def get(self, host: str) -> Route | None:
        if host in self._untold:
            # It is being told, or whoever put it was cancelled on the way.
            async with self._lock:
                if host in self._untold:
                    await self._tell(host)
        return self._map.routes.get(host)

    async def remove(self, host: str) -> None:
        async with self._lock:
            if host in self._map.routes or host in self._untold:
                self._untold.add(host)
                self._map.remove(host)
                await self._tell(host)

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
        self._waiting.turn_away(host, f"{pages.FULL.name}|")

    async def open_requests(self, host: str) -> int:
        async with self._lock:
            if host not in self._map.routes:
                return 0
            try:
                await self._look()
                answers = await self._workers.ask(activity.open_of(host))
                return sum(one.open_connections for answer in answers for one in activity.parse(answer).values())
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
            self._untold.clear()
            shutil.rmtree(self._files.directory, ignore_errors=True)

    @property
    def _map(self) -> RouteMap:
        if self._open_map is None:
            raise EngineUnavailable(
                "the preview proxy does not run: it was not started, or was taken down", retry_after=5
            )
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
            await self._workers.look()
            await self._workers.agree(routes.routes)
            await guarding.begin(self._files, process.command(process.program(self._options), self._files))
            self._open_map = routes
            self._untold.clear()
        except (ProxyGone, CommandRefused) as error:
            raise EngineUnavailable(f"the preview proxy does not work: {error}", retry_after=5) from error
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
        """What does not work is taken back whole: the guard starts the proxy anew from these files."""
        files = self._files
        pieces = (files.config, files.hold, *(files.pages / name for name in pages.documents()))
        before = {piece: piece.read_text() for piece in pieces if piece.exists()}
        self._write(wanted)
        try:
            await process.reload(self._options, files)
        except EngineUnavailable:
            for piece, text in before.items():
                _write(piece, text)
            raise

    def _write(self, wanted: Configuration) -> None:
        self._files.pages.mkdir(mode=0o700, exist_ok=True)
        for name, text in pages.documents().items():
            _write(self._files.pages / name, text)
        _write(self._files.hold, hold.script())
        _write(self._files.config, wanted.text)

    async def _tell(self, host: str, *, new: bool = False) -> None:
        """Have the proxy follow the file; one that has to be started reads it there."""
        route = self._map.routes.get(host)
        try:
            await (self._workers.remove(host) if route is None else self._workers.put(route, new=new))
        except ProxyGone:
            await self._start()
        except CommandRefused as error:
            raise EngineUnavailable(f"the preview proxy refuses a route: {error}", retry_after=5) from error
        self._untold.discard(host)

    async def _look(self) -> None:
        """A reload by somebody else may have read the file just before a route was put, and missed it."""
        if await self._workers.look():
            await self._workers.agree(self._map.routes)

    async def _counters(self) -> dict[str, PreviewActivity]:
        """Of the worker, and of earlier ones that still serve what was open when a reload replaced them."""
        await self._look()
        answers = [answer for command in activity.COMMANDS for answer in await self._workers.ask(command)]
        return activity.total(activity.parse(answer) for answer in answers)

    def _watch_certificate(self) -> None:
        file = self._options.certificate
        if file is not None and (self._certificate_watch is None or self._certificate_watch.done()):
            watch = Certificate(file, self._files.admin_socket).watch()
            self._certificate_watch = asyncio.create_task(watch, name="certificate of the previews")


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
