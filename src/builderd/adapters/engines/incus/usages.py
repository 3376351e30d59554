"""Usage of several sandboxes: of many by the metrics of their members, in place of the state of each instance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.disk_usage import DiskUsage
from builderd.adapters.engines.incus.errors import member_away, state_unknown
from builderd.adapters.engines.incus.instance_index import InstanceIndex
from builderd.adapters.engines.incus.metrics import InstanceMetrics, parse_metrics
from builderd.adapters.engines.incus.reports import member_of, name_of
from builderd.domain.errors import BuilderdError
from builderd.domain.ids import SandboxId
from builderd.domain.sandboxes import SandboxUsage
from builderd.ports.engine.usages import read_each

#: So many sandboxes are asked for one by one.
FEW = 4
#: Of the metrics of one member: an app has some 6 KB, and 200 bytes more for each processor where cgroups are v1.
MOST_BYTES = 64 << 20
#: A member is left alone for so many times as long as it took to answer, and so many seconds at most.
REST, MOST_REST_SECONDS = 20.0, 60.0


@dataclass(frozen=True, slots=True)
class _Reading:
    """Metrics of a member's instances, asked for at ``at`` (``time.monotonic``), or the error of that.

    ``seconds``: how long the answer took.
    """

    at: float
    instances: Mapping[str, InstanceMetrics | None]
    seconds: float = 0.0
    error: BuilderdError | None = None

    def will_do(self, now: float, max_age: float) -> bool:
        """Return True if the member is not to be asked again yet: for its age, or for what an answer costs there."""
        return now - self.at < max(max_age, min(REST * self.seconds, MOST_REST_SECONDS))

    def of(self, name: str) -> InstanceMetrics | None:
        """Return the metrics of an instance, None of one that does not run. Raises where they cannot be read."""
        if self.error:
            raise self.error
        if name in self.instances and self.instances[name] is None:
            raise state_unknown(name)
        return self.instances.get(name)


class Usages:
    """``read_one`` reads the usage of a sandbox by its state; ``away`` returns members that are away.

    ``is_lost`` is True for an instance that is to end when its member returns.
    """

    def __init__(
        self,
        client: IncusClient,
        index: InstanceIndex,
        read_one: Callable[[SandboxId], Awaitable[SandboxUsage | None]],
        away: Callable[[], Collection[str]],
        is_lost: Callable[[str], bool],
    ) -> None:
        self._client = client
        self._index = index
        self._read_one = read_one
        self._disks = DiskUsage(read_one)
        self._away = away
        self._is_lost = is_lost
        #: Last readings of members.
        self._readings: dict[str, _Reading] = {}

    async def read(
        self, sandboxes: Collection[SandboxId], max_age: float = 0
    ) -> Mapping[SandboxId, SandboxUsage | Exception]:
        """Return the usage of those that run, or the error of reading it; of many with disks read before."""
        if len(sandboxes) <= FEW:
            return await read_each(self._read_one, sandboxes)
        try:
            await self._index.load()
        except BuilderdError as error:
            return dict.fromkeys(sandboxes, error)
        names = [name for one in sandboxes if not self._is_lost(name := name_of(one))]
        known = {name: self._index.member(name) for name in names}
        places = {name: member_of({"location": member}) for name, member in known.items() if member is not None}
        readings = await self._of_members(frozenset(places.values()), max_age)
        running = {name for name, member in places.items() if readings[member].instances.get(name)}
        await self._disks.read([one for one in sandboxes if name_of(one) in running])

        async def usage(sandbox: SandboxId) -> SandboxUsage | None:
            name = name_of(sandbox)
            reading = readings[places[name]] if name in places else None
            metrics = reading.of(name) if reading else None
            if reading is None or metrics is None:
                return None
            return _usage(metrics, self._disks.of(sandbox), time.monotonic() - reading.at)

        return await read_each(usage, sandboxes)

    async def _of_members(self, members: Collection[str], max_age: float) -> Mapping[str, _Reading]:
        now = time.monotonic()
        due = [name for name in members if name not in self._readings or not self._readings[name].will_do(now, max_age)]
        found = await asyncio.gather(*map(self._of_member, due))
        # A member that has no apps any more is forgotten.
        kept = {name: one for name, one in self._readings.items() if name in members}
        self._readings = kept | dict(zip(due, found, strict=True))
        return {name: self._readings[name] for name in members}

    async def _of_member(self, member: str) -> _Reading:
        begun = time.monotonic()
        if member in self._away():
            return _Reading(begun, {}, error=member_away(member))
        try:
            text = await self._client.text("/metrics", MOST_BYTES, target=member)
            found = await asyncio.to_thread(parse_metrics, text, self._client.project)
        except BuilderdError as error:
            return _Reading(begun, {}, error=error)
        return _Reading(begun, found, time.monotonic() - begun)


def _usage(metrics: InstanceMetrics, disk_bytes: int, age: float) -> SandboxUsage:
    return SandboxUsage(
        cpu_seconds=metrics.cpu_seconds,
        memory_bytes=metrics.memory_bytes,
        disk_bytes=disk_bytes,
        network_in_bytes=metrics.network_in_bytes,
        network_out_bytes=metrics.network_out_bytes,
        processes=metrics.processes,
        age_seconds=age,
    )
