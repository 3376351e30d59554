"""Members of the cluster as last seen. A watch looks every few seconds, so that members that join, vanish or return
are known without a restart of the service."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from builderd.adapters.engines.incus.cluster import Cluster, Member
from builderd.adapters.engines.incus.options import IncusOptions
from builderd.domain.errors import BuilderdError
from builderd.domain.members import MemberReport
from builderd.domain.quotas import Capacity

log = logging.getLogger(__name__)

WATCH_SECONDS = 5.0

#: Called with the members that have come (joined or returned).
OnArrival = Callable[[Sequence[Member]], Awaitable[None]]


class Members:
    """``on_arrival`` prepares members that joined or returned; it is called again until it succeeds."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._seen: Mapping[str, Member] = {}
        #: When a member was first seen away, by the monotonic clock.
        self._away: dict[str, float] = {}
        #: Members that ``on_arrival`` has prepared.
        self._prepared: set[str] = set()
        self._watching: asyncio.Task[None] | None = None
        #: Why the members do not answer, such as for want of a quorum; "" while they do.
        self.unavailable_reason = ""

    async def look(self) -> None:
        """Ask for all members."""
        found = {member.name: member for member in await self._cluster.members()}
        now = time.monotonic()
        for name, member in found.items():
            before = self._seen.get(name)
            if before and before.leaving and not member.leaving:
                # Restored: what Incus refused to change meanwhile is changed now.
                self._prepared.discard(name)
            if member.online != (before is None or before.online):
                log.warning("member of Incus changed member=%s online=%s", name, member.online)
        self._away = {name: self._away.get(name, now) for name, member in found.items() if not member.online}
        self._prepared -= self._away.keys() | (self._prepared - found.keys())
        self._seen = found

    def prepared(self) -> None:
        """Note that all members that are online are prepared."""
        self._prepared = {name for name, member in self._seen.items() if member.online}

    def watch(self, on_arrival: OnArrival) -> None:
        """Look every few seconds, until ``close``."""
        if self._cluster.clustered and self._watching is None:
            self._watching = asyncio.create_task(self._watch(on_arrival))

    async def _watch(self, on_arrival: OnArrival) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self._observe()
                arrived = [one for one in self._seen.values() if one.online and one.name not in self._prepared]
                if arrived:
                    await on_arrival(arrived)
                    self._prepared |= {member.name for member in arrived}
            except BuilderdError as error:
                log.warning("look at the members of Incus failed retry_seconds=%.0f error=%s", WATCH_SECONDS, error)

    async def _observe(self) -> None:
        try:
            await self.look()
        except BuilderdError as error:
            self.unavailable_reason = error.message
            raise
        self.unavailable_reason = ""

    async def close(self) -> None:
        if self._watching:
            self._watching.cancel()
            await asyncio.wait({self._watching})
            self._watching = None

    async def address(self, name: str) -> str:
        """Return the address of a member, "" of an unknown one; asked for when it is not known yet."""
        if name not in self._seen:
            await self.look()
        member = self._seen.get(name)
        return member.address if member else ""

    @property
    def own(self) -> str:
        """Return the service's own member, "" without a cluster."""
        return self._cluster.own

    def taking_work(self) -> str:
        """Return the service's own member; another one that is online while Incus starts nothing on it."""
        own = self._seen.get(self.own)
        if own is None or not own.leaving:
            return self.own
        others = (member.name for member in self._seen.values() if member.online and not member.leaving)
        return next(others, self.own)

    def all(self) -> Sequence[Member]:
        return list(self._seen.values())

    def reports(self, options: IncusOptions, capacities: Mapping[str, Capacity]) -> Sequence[MemberReport]:
        """Return all members for the service."""
        now = datetime.now(UTC)
        return [
            MemberReport(
                member.name,
                member.address,
                None if (away := self.away(member.name)) is None else now - timedelta(seconds=away),
                given_up=away is not None and options.recover == "backup" and away >= options.recover_after,
                evacuating=member.leaving,
                capacity=capacities.get(member.name),
            )
            for member in self._seen.values()
        ]

    def away_names(self) -> frozenset[str]:
        return frozenset(self._away)

    def away(self, name: str) -> float | None:
        """Return for how many seconds a member has been away; None of one that is online."""
        since = self._away.get(name)
        return None if since is None else time.monotonic() - since
