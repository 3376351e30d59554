"""The proxy of a standby, in a directory of its own. It outlives the service only to serve what is open.

A replaced or retired proxy gets SIGUSR1: it listens no more, so that the ports are free at once, and ends with its last
connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import shutil
import signal
from collections.abc import Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builderd.adapters.previews.haproxy import forward_config, guard, listed_config, pages, process, runtime_api
from builderd.adapters.previews.haproxy.forward_config import SERVER, ForwardOptions, backend_name
from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.adapters.previews.haproxy.receiving import PassedOn
from builderd.adapters.previews.haproxy.runtime_api import CommandRefused, ProxyGone, Worker
from builderd.domain.errors import EngineUnavailable
from builderd.linux import atomic_files

log = logging.getLogger(__name__)
#: Seconds within which a retired proxy has closed its ports; it takes some hundredths.
CLOSING_SECONDS = 10.0
#: Seconds within which it answers its last commands; it takes some milliseconds.
LAST_SECONDS = 2.0
_END_VISITS = tuple(f"shutdown sessions server {server}" for server in listed_config.APPS)


@dataclass(frozen=True, slots=True)
class Target:
    """Address of the service that works, and whether calls, and visitors and logins, are passed on to it now.

    ``listed``: visitors are served by the list of routes instead.
    """

    address: str
    port: int
    api: bool
    streams: bool
    listed: bool = False


class Forwarder:
    """Methods raise ``EngineUnavailable`` while the proxy does not do what they ask."""

    def __init__(self, directory: Path) -> None:
        self._files = ProxyFiles(directory.absolute())
        self._options: ForwardOptions | None = None
        self._target: Target | None = None
        #: Entries of the list of routes that the proxy has; None where it has to be asked.
        self._listed: Mapping[str, str] | None = {}
        self._starts = 0

    @property
    def own_socket(self) -> Path:
        """The socket at which this service takes the requests that it answers itself."""
        return self._files.api_socket

    def prepare(self) -> None:
        """Make the directories; ``own_socket`` may be bound from then on."""
        process.check_paths(self._files)
        self._files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._files.jail.mkdir(mode=0o711, exist_ok=True)
        self._files.jail.chmod(0o711)

    async def run(self, options: ForwardOptions) -> bool:
        """Start the proxy with these options, or again if it has ended or they have changed. Idempotent.

        Return True if it was started: its list of routes is empty.
        """
        if options == self._options and guard.find_process(self._files.pid, self._files) is not None:
            return False
        await self.retire()
        files = self._files
        self.prepare()
        files.pages.mkdir(mode=0o700, exist_ok=True)
        for name, text in pages.documents().items():
            atomic_files.replace(files.pages / name, text.encode(), mode=0o644)
        files.routes.write_text("")
        self._listed = {}
        host = process.host(options.proxy)
        atomic_files.replace(files.config, forward_config.render(options, files, host).text.encode())
        self._starts += 1
        await _finish(process.start(options.proxy, files))
        self._options, target, self._target = options, self._target, None
        if target is not None:
            await self.lead(target)
        return True

    async def lead(self, target: Target) -> None:
        """Pass connections on to this service, also those that wait for another one. Idempotent."""
        if target == self._target or self._options is None:
            return
        with _available():
            if target.listed:
                # First: a visitor finds one of both.
                await self._use_list(self._options, is_used=True)
            for name, service in self._options.backends.items():
                server = f"{name}/{SERVER}"
                is_open = target.api if service is PassedOn.API else target.streams
                is_open &= not (service is PassedOn.HTTP and target.listed)
                for change in (f"addr {target.address} port {target.port}", f"state {_state(is_open)}"):
                    await runtime_api.set_server(self._files.admin_socket, f"{server} {change}")
            if not target.listed:
                await self._use_list(self._options, is_used=False)
        self._target = target

    async def put_list(self, routes: Mapping[str, str]) -> None:
        """Have exactly these entries (host → encoded route) in the list of routes, used or not."""
        if routes == self._listed or not self.serves_list:
            return
        worker, table, have, self._listed = Worker(self._files.admin_socket), self._files.routes, self._listed, None
        starts = self._starts
        try:
            with _available():
                if have is None:
                    # The last change failed in the middle.
                    have = await runtime_api.entries(worker, table)
                await runtime_api.change_entries(worker, table, have, routes)
        finally:
            if starts != self._starts:
                # Another proxy was started meanwhile, without entries, and may have got some of these.
                self._listed = None
        if starts != self._starts:
            raise EngineUnavailable("the standby's proxy was started again", retry_after=5)
        self._listed = dict(routes)

    async def allow_list(self, until: int) -> None:
        """Let the list of routes be used until this time, in seconds since 1970; 0: not from now on."""
        await self._allow(_allow(until))

    async def allow_direct(self, until: int) -> None:
        """Let visits be led by the list beside the service that works, until this time as above."""
        await self._allow(_allow(until, listed_config.DIRECT_TABLE))

    async def _allow(self, command: str) -> None:
        if not self.serves_list:
            return
        with _available():
            if answer := await runtime_api.ask(self._files.admin_socket, command):
                raise CommandRefused(answer)

    @property
    def serves_list(self) -> bool:
        """Return True while a proxy runs that may serve visits by the list of routes."""
        return self._options is not None and self._options.serves_list

    @property
    def starts(self) -> int:
        """Return how many proxies were started: each has its own counters, and an earlier one may go on."""
        return self._starts

    async def counts(self, commands: Collection[str]) -> list[str]:
        """Return the answers to commands that read counters."""
        with _available():
            return [await runtime_api.ask(self._files.admin_socket, command) for command in commands]

    async def _use_list(self, options: ForwardOptions, *, is_used: bool) -> None:
        if options.serves_list:
            server = f"{backend_name(PassedOn.HTTP)}/{listed_config.SERVER}"
            await runtime_api.set_server(self._files.admin_socket, f"{server} state {_state(is_used)}")

    async def end_visits(self) -> None:
        """End the visits that the list of routes led, as far as the proxy answers."""
        await self._ask_once(*_END_VISITS)

    async def retire(self, *, ends_visits: bool = False) -> None:
        """Free the ports, and serve what is open to its end. Idempotent; also of an earlier service that was killed.

        No visitor is led by the list of routes any more, also none whose request is open. ``ends_visits``: those that
        it led before end, too.
        """
        pids = list(self._processes())
        self._options = None
        if not pids:
            return
        direct = _allow(0, listed_config.DIRECT_TABLE)
        await self._ask_once(_allow(0), direct, *(_END_VISITS if ends_visits else ()))
        # A master passes it on to its workers.
        _signal(pids, signal.SIGUSR1)
        if not await _wait_until_closed(pids):
            _signal(pids, signal.SIGKILL)
            if not await _wait_until_closed(pids):
                log.warning("proxy of a standby keeps its ports pids=%s", ",".join(map(str, pids)))

    async def _ask_once(self, *commands: str) -> None:
        """Give commands to a proxy that may be another one's, or answer no more: its permission ends by itself then."""
        with contextlib.suppress(ProxyGone, TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                for command in commands:
                    await runtime_api.ask(self._files.admin_socket, command)

    async def end(self) -> None:
        """End the proxy with all that it serves, and remove its files. Idempotent."""
        pids = list(self._processes())
        _signal(pids, signal.SIGTERM)
        gone = await asyncio.gather(*map(guard.wait_until_gone, pids))
        _signal([pid for pid, is_gone in zip(pids, gone, strict=True) if not is_gone], signal.SIGKILL)
        shutil.rmtree(self._files.directory, ignore_errors=True)

    def _processes(self) -> Iterator[int]:
        """Yield all processes with this proxy's configuration: its master, its worker, and retired ones."""
        if not self._files.directory.exists():
            return
        config = os.fsencode(self._files.config)
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                with contextlib.suppress(OSError):
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                    if config in words and b"-W" in words and _is_own_proxy(folder):
                        yield int(folder.name)


def _allow(until: int, table: str = listed_config.TABLE) -> str:
    return f"set table {table} key {listed_config.KEY} data.gpt0 {until}"


def _state(is_open: bool) -> str:
    return "ready" if is_open else "maint"


@contextlib.contextmanager
def _available() -> Iterator[None]:
    try:
        yield
    except (ProxyGone, CommandRefused) as error:
        raise EngineUnavailable(f"the standby's proxy does not work: {error}", retry_after=5) from error


def _is_own_proxy(folder: Path) -> bool:
    """Return True if the process is a HAProxy of this service's: anybody may take its command line, apps among them."""
    user = process.worker_user()
    users = {os.geteuid()} | ({pwd.getpwnam(user).pw_uid} if user else set())
    words = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("Uid:")).split()
    return (
        int(words[1]) in users
        and (folder / "ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
        # After an upgrade of the package: "haproxy (deleted)".
        and (folder / "exe").readlink().name.startswith("haproxy")
    )


async def _finish(start: Coroutine[Any, Any, None]) -> None:
    """Wait for a start also when cancelled: ``retire`` finds only a proxy that runs."""
    starting = asyncio.create_task(start)
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait({starting})
        raise


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


async def _wait_until_closed(pids: Sequence[int]) -> bool:
    """Wait until no process has a listening TCP socket open; return False after ``CLOSING_SECONDS``."""
    deadline = asyncio.get_running_loop().time() + CLOSING_SECONDS
    while await asyncio.to_thread(_listen, pids):
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def _listen(pids: Sequence[int]) -> bool:
    listening = {line.split()[9] for line in _tcp_lines() if line.split()[3] == "0A"}
    return any(_holds(pid, listening) for pid in pids)


def _holds(pid: int, sockets: Collection[str]) -> bool:
    """Return True if the process has one of these sockets open."""
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                name = str(descriptor.readlink())
                if name.startswith("socket:[") and name[8:-1] in sockets:
                    return True
    return False


def _tcp_lines() -> list[str]:
    lines: list[str] = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            lines += Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    return lines
