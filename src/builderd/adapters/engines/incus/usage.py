"""Use of a running sandbox: the ports that its app listens on, processor, memory, disk and network."""

from __future__ import annotations

import asyncio

from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.disks import Disks
from builderd.adapters.engines.incus.exec_session import run_to_end
from builderd.adapters.engines.incus.sandboxes import Sandboxes
from builderd.adapters.engines.incus.volumes import own_of
from builderd.adapters.engines.oci.runtime.listening import parse_listening
from builderd.domain.errors import InvalidState
from builderd.domain.ids import DiskId, SandboxId
from builderd.domain.sandboxes import IPV6_ONLY, Listening, SandboxEffort, SandboxUsage


class Usage:
    def __init__(self, client: IncusClient, sandboxes: Sandboxes, disks: Disks) -> None:
        self._client = client
        self._sandboxes = sandboxes
        self._disks = disks

    async def listening(self, sandbox: SandboxId) -> Listening:
        found = await self._sandboxes.running(sandbox)
        if found is None or found["status"] != "Running":
            return Listening(frozenset())
        try:
            _, told = await run_to_end(self._client, found["name"], ("cat", "/proc/net/tcp", "/proc/net/tcp6"))
        except InvalidState:
            return Listening(frozenset())
        sockets = parse_listening(told.decode())
        alone = {port for ip, port in sockets if ip == "::"} - {port for ip, port in sockets if ip == "0.0.0.0"}  # noqa: S104
        for port in alone:
            if not await _answers(own_of(found)["ip"], port):
                sockets = sockets - {("::", port)} | {(IPV6_ONLY, port)}
        return Listening(sockets)

    async def usage(self, sandbox: SandboxId) -> SandboxUsage | None:
        found = await self._sandboxes.running(sandbox)
        if found is None:
            return None
        disk = DiskId(own_of(found)["disk"])
        state, used = await asyncio.gather(
            self._client.get(f"/instances/{found['name']}/state"), self._disks.used(disk)
        )
        counters = ((state.get("network") or {}).get("eth0") or {}).get("counters") or {}
        return SandboxUsage(
            cpu_seconds=state["cpu"]["usage"] / 1e9,
            memory_bytes=max(state["memory"]["usage"], 0),
            disk_bytes=used,
            network_in_bytes=counters.get("bytes_received", 0),
            network_out_bytes=counters.get("bytes_sent", 0),
            processes=max(state["processes"], 0),
        )

    async def effort(self, sandbox: SandboxId) -> SandboxEffort | None:
        """Return the CPU time alone: Incus does not tell the states of threads."""
        found = await self._sandboxes.running(sandbox)
        if found is None:
            return None
        state = await self._client.get(f"/instances/{found['name']}/state")
        return SandboxEffort(state["cpu"]["usage"] / 1e9)


async def _answers(ip: str, port: int) -> bool:
    """Return True unless the port refuses connections by IPv4: the kernel's tables do not tell sockets for both."""
    try:
        async with asyncio.timeout(1):
            _, writer = await asyncio.open_connection(ip, port)
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    writer.close()
    return True
