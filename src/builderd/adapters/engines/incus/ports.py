"""Ports of apps: the service dials an app's own port, and a program in the instance lists what else listens there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.guest import LIST_PORTS
from builderd.adapters.engines.incus.process import run_to_end
from builderd.adapters.engines.incus.reports import name_of
from builderd.adapters.engines.incus.sandboxes import Sandboxes
from builderd.adapters.engines.incus.volumes import own_of
from builderd.adapters.engines.oci.runtime.listening import parse_listening
from builderd.domain.errors import InvalidState
from builderd.domain.ids import SandboxId
from builderd.domain.sandboxes import IPV6_ONLY, Listening

#: Of one dial, and between two while a port is waited for, in seconds.
DIAL_SECONDS, DIAL_PAUSE = 1.0, 0.02
#: Seconds between two lists of sockets while a port is waited for: each is a program of Incus, and CPU time of the app.
LIST_PAUSE = 1.0

_NOTHING = Listening(frozenset())


class Ports:
    def __init__(self, client: IncusClient, sandboxes: Sandboxes) -> None:
        self._client = client
        self._sandboxes = sandboxes
        #: The last list, and when it was made (``time.monotonic``), of sandboxes whose port is waited for.
        self._lists: dict[SandboxId, tuple[float, Listening]] = {}

    @contextmanager
    def watch(self, sandbox: SandboxId) -> Iterator[Callable[[], bool]]:
        """Yield a check of the app's port, as ``watch_port`` of the engine."""
        self._lists[sandbox] = -LIST_PAUSE, _NOTHING
        dialling = asyncio.create_task(self._dial_until_open(sandbox))
        # ``listening`` raises the error of a dial that cannot be made.
        dialling.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            yield dialling.done
        finally:
            dialling.cancel()
            self._lists.pop(sandbox, None)

    async def _dial_until_open(self, sandbox: SandboxId) -> None:
        address = await self._address(sandbox)
        while True:
            if address is None or await _answers(*address):
                return
            await asyncio.sleep(DIAL_PAUSE)

    async def listening(self, sandbox: SandboxId) -> Listening:
        """Return the app's own port where it answers, else the sockets that listen inside."""
        address = await self._address(sandbox)
        if address is None:
            return _NOTHING
        if await _answers(*address):
            return Listening(frozenset({("0.0.0.0", address[1])}))  # noqa: S104
        at, known = self._lists.get(sandbox, (-LIST_PAUSE, _NOTHING))
        if time.monotonic() - at < LIST_PAUSE:
            return known
        found = await self._list(sandbox, *address)
        if sandbox in self._lists:
            self._lists[sandbox] = time.monotonic(), found
        return found

    async def _address(self, sandbox: SandboxId) -> tuple[str, int] | None:
        """Return the IP address and port of a running app, None of one that does not run."""
        found = await self._sandboxes.running(sandbox)
        if found is None or found["status"] != "Running":
            return None
        own = own_of(found)
        return own.get("ip", ""), int(own.get("port", 0))

    async def _list(self, sandbox: SandboxId, ip: str, port: int) -> Listening:
        try:
            _, output = await run_to_end(self._client, name_of(sandbox), LIST_PORTS)
        except InvalidState:  # it has ended
            return _NOTHING
        sockets = parse_listening(output.decode())
        # The kernel's tables show sockets for both protocols and those for IPv6 alone in the same way.
        if ("::", port) in sockets and not await _answers(ip, port):
            sockets = sockets - {("::", port)} | {(IPV6_ONLY, port)}
        return Listening(sockets)


async def _answers(ip: str, port: int) -> bool:
    try:
        async with asyncio.timeout(DIAL_SECONDS):
            _, writer = await asyncio.open_connection(ip, port)
    except OSError:  # TimeoutError is one
        return False
    writer.close()
    return True
