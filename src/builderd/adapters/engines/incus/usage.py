"""Use of running sandboxes: processor, memory, disk and network.

That of one is its instance's state. That of many comes from the metrics of their members (OpenMetrics text), which have
no bytes of disks: Incus runs programs of btrfs for those, so each disk is asked for now and then. Names and units:
https://linuxcontainers.org/incus/docs/main/reference/provided_metrics/.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from builderd.adapters.engines.incus.client import (
    RETRY_SECONDS,
    IncusClient,
    IncusNotFound,
    InstanceEnded,
    Json,
    member_away,
    state_unknown,
)
from builderd.adapters.engines.incus.disks import volume_of
from builderd.adapters.engines.incus.image import LIST_PORTS
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.process import run_to_end
from builderd.adapters.engines.incus.reports import PREFIX, name_of
from builderd.adapters.engines.incus.volumes import own_of
from builderd.adapters.engines.oci.runtime.listening import parse_listening
from builderd.domain.errors import BuilderdError, EngineUnavailable, InvalidState
from builderd.domain.ids import DiskId, SandboxId
from builderd.domain.sandboxes import IPV6_ONLY, Listening, SandboxUsage

#: Least age of a disk's bytes that are read again, and how many disks are read in one call, the oldest first.
DISK_SECONDS, DISKS_AT_ONCE = 60.0, 8
#: The last line of metrics; without it the text was cut off.
_END = b"# EOF\n"
_UNREAD = 0, -math.inf
_KINDS = ("cpu_seconds", "memory_MemTotal", "memory_MemFree", "network_receive", "network_transmit", "procs")
_LINE = (
    rb"^incus_(%b)(?:_bytes)?(?:_total)?"
    rb'\{(?:cpu="[0-9]+",mode="(?:system|user)",|device="eth0",|)name="(%b[0-9A-Za-z]+)",project="%b",'
    rb'type="container"\} (-?[0-9]+(?:\.[0-9]+)?(?:e[+-][0-9]+)?)$'
)

#: Returns the instance of a sandbox that runs or is frozen.
Running = Callable[[SandboxId], Awaitable[Json | None]]
#: Instance → its use, without the disk; None of one that started or ended while it was read.
Metrics = Mapping[str, SandboxUsage | None]


class Usage:
    """``away`` returns members that are away."""

    def __init__(self, instances: Instances, running: Running, away: Callable[[], Collection[str]]) -> None:
        self._client = instances.client
        self._instances = instances
        self._running = running
        self._away = away
        #: Bytes of each sandbox's disk, and when they were read (``time.monotonic``).
        self._disks: dict[SandboxId, tuple[int, float]] = {}

    async def read(self, sandbox: SandboxId) -> SandboxUsage | None:
        """Return the use of a sandbox, None of one that does not run."""
        found = await self._running(sandbox)
        if found is None:
            return None
        try:
            state = await self._client.get(f"/instances/{found['name']}/state")
        except (IncusNotFound, InstanceEnded):
            return None
        counters = ((state.get("network") or {}).get("eth0") or {}).get("counters") or {}
        disk = volume_of(DiskId(own_of(found)["disk"]))
        device = next((name for name, one in found["devices"].items() if one.get("source") == disk), "")
        return SandboxUsage(
            cpu_seconds=state["cpu"]["usage"] / 1e9,
            memory_bytes=max(state["memory"]["usage"], 0),
            # Those that no clone shares.
            disk_bytes=int(((state.get("disk") or {}).get(device) or {}).get("usage", 0)),
            network_in_bytes=counters.get("bytes_received", 0),
            network_out_bytes=counters.get("bytes_sent", 0),
            processes=max(state["processes"], 0),
        )

    async def read_many(
        self, sandboxes: Collection[SandboxId], max_age: float = 0
    ) -> Mapping[SandboxId, SandboxUsage | Exception]:
        """Return the usage of those that run, or the error of reading it. Incus makes metrics anew every 8 s."""
        try:
            await self._instances.load_index()
        except BuilderdError as error:
            return dict.fromkeys(sandboxes, error)
        members = {
            one: member for one in sandboxes if (member := self._instances.index.member(name_of(one))) is not None
        }
        asked = sorted(set(members.values()))
        read = dict(zip(asked, await asyncio.gather(*map(self._read_member, asked)), strict=True))
        found: dict[SandboxId, SandboxUsage | Exception] = {}
        for sandbox, member in members.items():
            metrics = read[member]
            if isinstance(metrics, BuilderdError):
                found[sandbox] = metrics
            elif (name := name_of(sandbox)) in metrics:
                found[sandbox] = metrics[name] or state_unknown(name)
        running = {one: used for one, used in found.items() if isinstance(used, SandboxUsage)}
        await self._read_disks(running)
        return found | {
            one: replace(used, disk_bytes=self._disks.get(one, _UNREAD)[0]) for one, used in running.items()
        }

    async def _read_member(self, member: str) -> Metrics | BuilderdError:
        if member in self._away():
            return member_away(member)
        try:
            text = await self._client.text("/metrics", target=member)
            return await asyncio.to_thread(parse_metrics, text, self._client.project)
        except BuilderdError as error:
            return error

    async def _read_disks(self, sandboxes: Collection[SandboxId]) -> None:
        """Read the disks that were read longest ago; one that cannot be read keeps its bytes."""
        now = time.monotonic()
        self._disks = {
            one: known for one, known in self._disks.items() if self._instances.index.member(name_of(one)) is not None
        }
        due = [one for one in sandboxes if now - self._disks.get(one, _UNREAD)[1] > DISK_SECONDS]
        due = sorted(due, key=lambda one: self._disks.get(one, _UNREAD)[1])[:DISKS_AT_ONCE]
        for one, used in zip(due, await asyncio.gather(*map(self.read, due), return_exceptions=True), strict=True):
            known = self._disks.get(one, _UNREAD)[0]
            self._disks[one] = (used.disk_bytes if isinstance(used, SandboxUsage) else known), now


def parse_metrics(text: bytes, project: str) -> Metrics:
    """Return the use of the running sandboxes of a project, by their instances.

    Raises ``EngineUnavailable`` for a text without its end.
    """
    if not text.endswith(_END):
        raise EngineUnavailable("Incus's metrics were cut off.", retry_after=RETRY_SECONDS)
    parts = "|".join(_KINDS).encode(), re.escape(PREFIX.encode()), re.escape(project.encode())
    found: dict[str, dict[str, float]] = {}
    for kind, name, value in re.findall(_LINE % parts, text, re.MULTILINE):
        values = found.setdefault(name.decode(), defaultdict(float))
        values[kind.decode()] += float(value)  # a processor has two lines
    return {name: _usage(values) if len(values) == len(_KINDS) else None for name, values in found.items()}


def _usage(values: Mapping[str, float]) -> SandboxUsage:
    # Free memory may be negative: the kernel lets an app exceed its limit while it reclaims.
    return SandboxUsage(
        cpu_seconds=values["cpu_seconds"],
        memory_bytes=max(int(values["memory_MemTotal"] - values["memory_MemFree"]), 0),
        disk_bytes=0,
        network_in_bytes=int(values["network_receive"]),
        network_out_bytes=int(values["network_transmit"]),
        processes=int(values["procs"]),
    )


#: Of one dial, and between two while a port is waited for, in seconds.
DIAL_SECONDS, DIAL_PAUSE = 1.0, 0.02
#: Seconds between two lists of sockets while a port is waited for: each is a program of Incus, and CPU time of the app.
LIST_PAUSE = 1.0

_NOTHING = Listening(frozenset())


class Ports:
    def __init__(self, client: IncusClient, running: Running) -> None:
        self._client = client
        self._running = running
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
        found = await self._running(sandbox)
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
