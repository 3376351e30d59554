"""Report, end, usage and ports of a sandbox, from its instance and the service's own keys on it.

Keys: ``builder``, ``disk``, ``layer``, ``ip``, ``started``; ``stopping``, ``frozen``, ``thawed``; ``end``, written when
the end was first seen; ``removed``. Times are in seconds since 1970.

Usage of one sandbox is its instance's state. That of many comes from the metrics of their members (OpenMetrics text),
which have no bytes of disks: Incus runs programs of btrfs for those, so each disk is asked for now and then. Names and
units: https://linuxcontainers.org/incus/docs/main/reference/provided_metrics/.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from weakref import WeakValueDictionary

from builderd.core.errors import BuilderdError, EngineUnavailable, InvalidState
from builderd.core.ids import BuilderId, DiskId, SandboxId
from builderd.engine.incus import image
from builderd.engine.incus.client import RETRY_SECONDS, IncusClient, IncusError, IncusNotFound, Json, member_away
from builderd.engine.incus.disks import volume_of
from builderd.engine.incus.image import LIST_PORTS
from builderd.engine.incus.instance import OWN
from builderd.engine.incus.instances import Instances, member_of, own_of
from builderd.engine.incus.process import run_to_end
from builderd.engine.oci.runtime.listening import parse_listening
from builderd.sandboxes.model import (
    IPV6_ONLY,
    EndCause,
    Listening,
    SandboxEnd,
    SandboxReport,
    SandboxState,
    SandboxUsage,
)

PREFIX = "s-"
#: Clocks of members may differ by so many seconds.
_CLOCKS = 1.0
#: Codes of an app that was ended by a machine's shutdown: TERM, then KILL.
SHUTDOWN_CODES = (143, 137)
_ALIVE = {
    "Running": SandboxState.RUNNING,
    "Ready": SandboxState.RUNNING,
    "Thawed": SandboxState.RUNNING,
    "Stopping": SandboxState.RUNNING,
    "Frozen": SandboxState.FROZEN,
    "Freezing": SandboxState.FROZEN,
}


@dataclass(frozen=True, slots=True)
class Exit:
    """Record that the instance's first program wrote at its end."""

    code: int
    oom: bool
    at: float

    @classmethod
    def parse(cls, text: str) -> Exit:
        code, killed, at = text.split()
        return cls(int(code), killed != "0", float(at))


def name_of(sandbox: SandboxId) -> str:
    return f"{PREFIX}{sandbox}"


def sandbox_of(name: str) -> SandboxId:
    return SandboxId(name.removeprefix(PREFIX))


def is_sandbox(found: Json) -> bool:
    """Return True for an instance of a sandbox that was not removed."""
    return str(found["name"]).startswith(PREFIX) and "removed" not in own_of(found)


def missing_report(sandbox: SandboxId) -> SandboxReport:
    return SandboxReport(id=sandbox, builder_id=None, state=SandboxState.ABSENT)


def ended_report(found: Json, cause: EndCause) -> SandboxReport:
    """Return the report of a sandbox on a member that is away, and that is over for its builder."""
    return SandboxReport(sandbox_of(found["name"]), None, SandboxState.EXITED, end=SandboxEnd(cause, None, None))


def state_of(found: Json) -> SandboxState:
    """Return the state of an instance that got its order. Raises ``MemberAway``."""
    if found["status"] == "Error":
        raise member_away(str(found.get("location")))
    return SandboxState.EXITED if "end" in own_of(found) else _ALIVE.get(found["status"], SandboxState.EXITED)


def partial_report(found: Json) -> SandboxReport:
    """Return the report of an instance that never got its order."""
    return SandboxReport(sandbox_of(found["name"]), BuilderId(own_of(found)["builder"]), SandboxState.PARTIAL)


def make_report(found: Json) -> SandboxReport:
    """Return the report; of an ended one, its ``end`` was written before."""
    own, sandbox, state = own_of(found), sandbox_of(found["name"]), state_of(found)
    builder = BuilderId(own["builder"])
    started, frozen, thawed = (_moment(own.get(key)) for key in ("started", "frozen", "thawed"))
    if state is not SandboxState.EXITED:
        return SandboxReport(sandbox, builder, state, own["ip"], started, None, frozen, thawed, member=member_of(found))
    end = json.loads(own["end"])
    read = SandboxEnd(EndCause(end["cause"]), end["code"], _moment(end["at"]))
    oom = bool(end.get("oom"))
    return SandboxReport(sandbox, builder, state, None, started, read, frozen, thawed, oom, member_of(found))


def was_stopped(own: Mapping[str, str], exit_: Exit | None) -> bool:
    """Return True if it ended since the service stopped it: what else befell its machine says nothing then."""
    return "stopping" in own and (exit_ is None or exit_.at >= float(own["stopping"]) - _CLOCKS)


def make_end(own: Mapping[str, str], exit_: Exit | None, *, host_restarted: bool, now: float) -> str:
    """Return the value of the key ``end``. A forced end leaves no exit record."""
    started = float(own["started"])
    if exit_ is None:
        cause = EndCause.HOST_RESTARTED if host_restarted else EndCause.MONITOR_LOST
        cause = EndCause.STOPPED if was_stopped(own, exit_) else cause
        return _end(cause, None, max(now, started))
    at = max(exit_.at, started)
    if was_stopped(own, exit_):
        return _end(EndCause.STOPPED, exit_.code, at)
    if host_restarted and exit_.code in SHUTDOWN_CODES:
        return _end(EndCause.HOST_RESTARTED, None, at)
    # An app may survive the death of one of its processes and exit normally later.
    if exit_.oom and exit_.code:
        return _end(EndCause.OUT_OF_MEMORY, exit_.code, at, oom=True)
    return _end(EndCause.EXITED, exit_.code, at, oom=exit_.oom)


def _end(cause: EndCause, code: int | None, at: float, *, oom: bool = False) -> str:
    return json.dumps({"cause": cause.value, "code": code, "at": f"{at:.6f}", "oom": oom})


def _moment(seconds: str | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(float(seconds), UTC)


#: Seconds within which Incus notes that a stopped instance was stopped and not cut off with its machine.
_NOTE_SECONDS = 3.0
#: Attempts to read a file of an instance whose root is being unmounted.
_BUSY_TRIES, _BUSY_SECONDS = 50, 0.1


class Ends:
    def __init__(self, instances: Instances) -> None:
        self._client = instances.client
        self._instances = instances
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def write(self, found: Json) -> Json:
        """Find out how an instance ended, and write it on it, so that every later report says the same.

        Return the instance with it.
        """
        name = found["name"]
        async with self._locks.setdefault(name, asyncio.Lock()):
            # A stop, and the event that it causes, ask at the same time.
            end = own_of(await self._instances.find(name) or found).get("end")
            if end is None:
                end = await self._make_end(found)
                await self._instances.mark(name, {"end": end})
        return {**found, "config": found["config"] | {f"{OWN}end": end}}

    async def _make_end(self, found: Json) -> str:
        own, name = own_of(found), found["name"]
        recorded = await self.read(name, image.EXIT_RECORD)
        exit_ = Exit.parse(recorded) if recorded else None
        restarted = False
        if not was_stopped(own, exit_):
            restarted = exit_ is None and await self.read(name, image.RESTARTED) is not None
            if not restarted and (exit_ is None or exit_.code in SHUTDOWN_CODES):
                restarted = await self._was_cut_off(name)
        return make_end(own, exit_, host_restarted=restarted, now=time.time())

    async def read(self, name: str, path: str) -> str | None:
        """Return the text of a file of an instance, None when there is none."""
        for attempt in range(_BUSY_TRIES):
            try:
                content = await self._client.file(name, path)
            except IncusError as error:
                if isinstance(error, IncusNotFound):
                    return None
                # Its root is being unmounted after its end.
                if attempt == _BUSY_TRIES - 1:
                    raise
                await asyncio.sleep(_BUSY_SECONDS)
            else:
                return content.decode() if isinstance(content, bytes) else None
        return None

    async def _was_cut_off(self, name: str) -> bool:
        """Return True if Incus takes the instance for running: its machine restarted, or was shut down, under it."""
        deadline = time.monotonic() + _NOTE_SECONDS
        while time.monotonic() < deadline:
            found = await self._instances.find(name)
            if found is None or found["config"].get("volatile.last_state.power") != "RUNNING":
                return False
            await asyncio.sleep(0.1)
        return True


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
        except IncusNotFound:
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

    async def read_many(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, SandboxUsage | Exception]:
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
                found[sandbox] = metrics[name] or EngineUnavailable(
                    f"Incus could not read the state of the instance {name}: see incus list.", retry_after=RETRY_SECONDS
                )
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


#: Of one dial.
DIAL_SECONDS = 1.0
#: Seconds between two lists of sockets while a port is waited for: each is a program of Incus, and CPU time of the app.
LIST_PAUSE = 1.0

_NOTHING = Listening(frozenset())


class Ports:
    def __init__(self, client: IncusClient, running: Running) -> None:
        self._client = client
        self._running = running
        #: Lists of the last second, and when they were made (``time.monotonic``).
        self._lists: dict[SandboxId, tuple[float, Listening]] = {}

    async def listening(self, sandbox: SandboxId, port: int) -> Listening:
        """Return this port where it answers, else the sockets that listen inside."""
        address = await self._address(sandbox)
        if address is None:
            return _NOTHING
        if await _answers(address, port):
            return Listening(frozenset({("0.0.0.0", port)}))  # noqa: S104
        now = time.monotonic()
        self._lists = {one: listed for one, listed in self._lists.items() if now - listed[0] < LIST_PAUSE}
        if sandbox not in self._lists:
            found = await self._list(sandbox)
            self._lists[sandbox] = time.monotonic(), found
        sockets = self._lists[sandbox][1].sockets
        # The kernel's tables show sockets for both protocols and those for IPv6 alone in the same way.
        if ("::", port) in sockets and not await _answers(address, port):
            sockets = sockets - {("::", port)} | {(IPV6_ONLY, port)}
        return Listening(sockets)

    async def _address(self, sandbox: SandboxId) -> str | None:
        """Return the IP address of a running app, None of one that does not run."""
        found = await self._running(sandbox)
        if found is None or found["status"] != "Running":
            return None
        return own_of(found).get("ip", "")

    async def _list(self, sandbox: SandboxId) -> Listening:
        try:
            _, output = await run_to_end(self._client, name_of(sandbox), LIST_PORTS)
        except InvalidState:  # it has ended
            return _NOTHING
        return Listening(parse_listening(output.decode()))


async def _answers(ip: str, port: int) -> bool:
    try:
        async with asyncio.timeout(DIAL_SECONDS):
            _, writer = await asyncio.open_connection(ip, port)
    except OSError:  # TimeoutError is one
        return False
    writer.close()
    return True
