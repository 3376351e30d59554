"""Use of a running sandbox: the ports that its app listens on, processor, memory, disk and network."""

from __future__ import annotations

import asyncio

from builderd.adapters.engines.incus.client import IncusClient, Json
from builderd.adapters.engines.incus.disks import volume_of
from builderd.adapters.engines.incus.errors import IncusNotFound, InstanceEnded
from builderd.adapters.engines.incus.exec_session import run_to_end
from builderd.adapters.engines.incus.port_looks import LOOK, parse_look
from builderd.adapters.engines.incus.reports import name_of
from builderd.adapters.engines.incus.sandboxes import Sandboxes
from builderd.adapters.engines.incus.volumes import own_of
from builderd.adapters.engines.oci.runtime.listening import parse_listening
from builderd.domain.errors import InvalidState
from builderd.domain.ids import DiskId, SandboxId
from builderd.domain.sandboxes import IPV6_ONLY, Listening, SandboxEffort, SandboxUsage

#: Ports that are dialled at once to tell sockets for IPv6 alone, the lowest ones, and seconds for all of them.
MOST_DIALLED, DIAL_SECONDS = 16, 1.0
#: Starts of which the time of looks is known at once.
_MOST_LOOKED = 1000


class Usage:
    def __init__(self, client: IncusClient, sandboxes: Sandboxes) -> None:
        self._client = client
        self._sandboxes = sandboxes
        #: CPU seconds of looks at the ports of each sandbox, which Incus counts as its own.
        self._looked: dict[SandboxId, float] = {}

    async def listening(self, sandbox: SandboxId) -> Listening:
        if known := self._sandboxes.deliveries.sockets(name_of(sandbox)):
            return await _mark_ipv6_only(*known)
        pace = self._sandboxes.deliveries.pace(name_of(sandbox))
        if pace is not None and pace.last is not None and not pace.is_due():
            return pace.last
        listening = await self._look(sandbox)
        if pace is not None:
            pace.note(listening)
        return listening

    async def _look(self, sandbox: SandboxId) -> Listening:
        """Look by a program of its own."""
        found = await self._sandboxes.running(sandbox)
        if found is None or found["status"] != "Running":
            return Listening(frozenset())
        try:
            _, output = await run_to_end(self._client, found["name"], LOOK)
        except InvalidState:
            return Listening(frozenset())
        tables, seconds = parse_look(output.decode())
        self._looked[sandbox] = self._looked.pop(sandbox, 0.0) + seconds
        if len(self._looked) > _MOST_LOOKED:
            del self._looked[next(iter(self._looked))]
        return await _mark_ipv6_only(own_of(found).get("ip", ""), parse_listening(tables))

    async def usage(self, sandbox: SandboxId) -> SandboxUsage | None:
        found = await self._sandboxes.running(sandbox)
        if found is None:
            return None
        state = await self._state(found["name"])
        return _usage(found, state) if state else None

    async def effort(self, sandbox: SandboxId) -> SandboxEffort | None:
        """Return the app's CPU time alone, without that of looks at its ports: an app that waits would seem to work.

        Incus does not tell the states of threads.
        """
        found = await self._sandboxes.running(sandbox)
        state = await self._state(found["name"]) if found else None
        if state is None:
            self._looked.pop(sandbox, None)
            return None
        looks = self._looked.get(sandbox, 0.0) + self._sandboxes.deliveries.cpu_seconds(name_of(sandbox))
        return SandboxEffort(max(state["cpu"]["usage"] / 1e9 - looks, 0.0))

    async def _state(self, name: str) -> Json | None:
        """Return an instance's state; None if it has ended since it was listed."""
        try:
            return await self._client.get(f"/instances/{name}/state")  # type: ignore[no-any-return]
        except (IncusNotFound, InstanceEnded):
            return None


def _usage(found: Json, state: Json) -> SandboxUsage:
    """Return the usage of a running instance in this state; of a disk the bytes that no clone shares."""
    counters = ((state.get("network") or {}).get("eth0") or {}).get("counters") or {}
    disk = volume_of(DiskId(own_of(found)["disk"]))
    device = next((name for name, one in found["devices"].items() if one.get("source") == disk), "")
    return SandboxUsage(
        cpu_seconds=state["cpu"]["usage"] / 1e9,
        memory_bytes=max(state["memory"]["usage"], 0),
        disk_bytes=int(((state.get("disk") or {}).get(device) or {}).get("usage", 0)),
        network_in_bytes=counters.get("bytes_received", 0),
        network_out_bytes=counters.get("bytes_sent", 0),
        processes=max(state["processes"], 0),
    )


async def _mark_ipv6_only(ip: str, sockets: frozenset[tuple[str, int]]) -> Listening:
    """Mark sockets that only IPv6 reaches. An app may listen on many ports, and leave a caller of each waiting."""
    alone = {port for at, port in sockets if at == "::"} - {port for at, port in sockets if at == "0.0.0.0"}  # noqa: S104
    dialled = sorted(alone)[:MOST_DIALLED]
    answers = await asyncio.gather(*(_answers(ip, port) for port in dialled))
    refused = {("::", port) for port, answered in zip(dialled, answers, strict=True) if not answered}
    return Listening(sockets - refused | {(IPV6_ONLY, port) for _, port in refused})


async def _answers(ip: str, port: int) -> bool:
    """Return True unless the port refuses connections by IPv4: the kernel's tables do not tell sockets for both."""
    try:
        async with asyncio.timeout(DIAL_SECONDS):
            _, writer = await asyncio.open_connection(ip, port)
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    writer.close()
    return True
