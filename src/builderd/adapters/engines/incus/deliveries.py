"""Orders of apps, delivered to their instances; the program that does it tells what listens there afterwards.

A further program, to look at the ports, would cost each start another 70 to 170 ms for every look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from builderd.adapters.engines.incus import guest
from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.exec_session import ExecSession
from builderd.adapters.engines.incus.port_looks import LookPace, parse_look
from builderd.adapters.engines.oci.runtime.listening import parse_listening
from builderd.domain.sandboxes import Listening, SandboxReport

#: Seconds after the wait for the port in which ``report`` still serves the steps that follow.
REPORTED_SECONDS = 2.0
#: Seconds within which that wait begins; nobody waits for the port of a worker, a job or a release.
UNWATCHED_SECONDS = 5.0
#: Most seconds of a wait: the program ends by itself after 60, and where its member vanishes nothing says so.
WATCHED_SECONDS = 65.0
#: Starts of which the CPU time is known.
MOST_USED = 1000

log = logging.getLogger(__name__)


class PortWatch:
    """Sockets that listen in an instance, as its program ``deliver`` tells them for some time after the start."""

    def __init__(self, session: ExecSession, address: str, port: int, received: bytes) -> None:
        self._session = session
        self.address = address
        self._port = port
        self.report: SandboxReport | None = None
        #: Of the program, as it said last.
        self.cpu_seconds = 0.0
        #: Nothing listens before the order is given. None once the program has ended.
        self.sockets: frozenset[tuple[str, int]] | None = frozenset()
        #: Ends the watch, whatever Incus says.
        self.timer: asyncio.TimerHandle | None = None
        self._following = asyncio.ensure_future(self._follow(received))

    async def _follow(self, received: bytes) -> None:
        try:
            while True:
                *tables, received = received.split(guest.TABLE_END)
                if tables:
                    table, self.cpu_seconds = parse_look(tables[-1].decode())
                    self.sockets = parse_listening(table)
                piece = await self._session.read() if len(received) <= guest.MAX_TABLE_BYTES else b""
                if not piece:
                    return
                received += piece
        except ValueError as error:
            log.warning("listening sockets not understood error=%s", error)
        except Exception:
            log.warning("watch of a port failed, Incus is asked instead", exc_info=True)
        finally:
            self.sockets = None
            await self._session.close()

    def may_listen(self, pace: LookPace) -> bool:
        """Return False while the app's port is certainly not reached, or the next look for it is not due."""
        return pace.is_due() if self.sockets is None else Listening(self.sockets).reachable(self._port)

    @property
    def is_over(self) -> bool:
        return self._following.done()

    async def close(self) -> None:
        """End the program. Idempotent."""
        self._following.cancel()
        await asyncio.wait({self._following})


class Deliveries:
    def __init__(self, client: IncusClient) -> None:
        self._client = client
        #: By instance.
        self._watches: dict[str, PortWatch] = {}
        #: Of looks by further programs, while the port of an instance is waited for.
        self._paces: dict[str, LookPace] = {}
        #: CPU seconds of programs that have ended, the newest at the end.
        self._used: dict[str, float] = {}
        #: Instances that are being given their order; not those that have ended meanwhile.
        self._delivering: set[str] = set()
        self._closing: set[asyncio.Task[None]] = set()

    async def deliver(self, name: str, order: bytes, address: str, port: int) -> bytes | None:
        """Give an instance its order. Return None once it has it, and else what the program said."""
        self.end(name)
        self._delivering.add(name)
        try:
            return await self._deliver(name, order, address, port)
        finally:
            self._delivering.discard(name)

    async def _deliver(self, name: str, order: bytes, address: str, port: int) -> bytes | None:
        session = await ExecSession.open(self._client, name, guest.DELIVER)
        try:
            await session.write(order)
            await session.close_input()
            received = await session.read()
            if not received.startswith(guest.DELIVERED):
                failure = received + await session.read_errors()
                await session.close()
                return failure
        except BaseException:
            await asyncio.shield(session.close())
            raise
        for other in [other for other, watch in self._watches.items() if watch.is_over]:
            self.end(other)
        watch = self._watches[name] = PortWatch(session, address, port, received.removeprefix(guest.DELIVERED))
        if name in self._delivering:
            self._end_in(UNWATCHED_SECONDS, name, watch)
        else:
            self.end(name)
        return None

    def followed(self) -> Sequence[str]:
        """Return the instances that ``report`` may know."""
        return list(self._watches)

    def sockets(self, name: str) -> tuple[str, frozenset[tuple[str, int]]] | None:
        """Return the instance's address and the sockets that listen there, None where they are to be asked for."""
        watch = self._watches.get(name)
        return None if watch is None or watch.sockets is None else (watch.address, watch.sockets)

    def pace(self, name: str) -> LookPace | None:
        """Return the pace of looks at an instance whose port is waited for; None where nobody waits."""
        return self._paces.get(name)

    def cpu_seconds(self, name: str) -> float:
        """Return the CPU time of the program in an instance, which Incus counts as the app's."""
        watch = self._watches.get(name)
        return watch.cpu_seconds if watch else self._used.get(name, 0.0)

    def note(self, name: str, report: SandboxReport) -> None:
        """Note the report of a sandbox that has its order: it holds while the program in it runs."""
        if watch := self._watches.get(name):
            watch.report = report

    def report(self, name: str) -> SandboxReport | None:
        """Return the report of a sandbox that certainly runs; None says nothing."""
        watch = self._watches.get(name)
        return watch.report if watch and watch.sockets is not None else None

    @contextmanager
    def watch(self, name: str) -> Iterator[Callable[[], bool]]:
        """Yield a check of the app's port, as ``watch_port`` of the engine. The program in it ends soon afterwards."""
        watch, pace = self._watches.get(name), LookPace()
        self._paces[name] = pace
        if watch:
            self._end_in(WATCHED_SECONDS, name, watch)
        try:
            yield partial(watch.may_listen, pace) if watch else pace.is_due
        finally:
            if self._paces.get(name) is pace:
                del self._paces[name]
            if watch:
                self._end_in(REPORTED_SECONDS, name, watch)

    def _end_in(self, seconds: float, name: str, watch: PortWatch) -> None:
        """End the watch in so many seconds, instead of at the time set before."""
        if watch.timer:
            watch.timer.cancel()
        watch.timer = asyncio.get_running_loop().call_later(seconds, self._end, name, watch)

    def _end(self, name: str, watch: PortWatch) -> None:
        if self._watches.get(name) is watch:
            self.end(name)

    def end(self, name: str) -> None:
        """Have the program in an instance end: from now on its state is asked for. Idempotent.

        Called before the instance is stopped, and once its end is known.
        """
        self._delivering.discard(name)
        if watch := self._watches.pop(name, None):
            if watch.timer:
                watch.timer.cancel()
            self._used[name] = watch.cpu_seconds
            if len(self._used) > MOST_USED:
                del self._used[next(iter(self._used))]
            closing = asyncio.ensure_future(watch.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for name in self.followed():
            self.end(name)
        await asyncio.gather(*self._closing)
