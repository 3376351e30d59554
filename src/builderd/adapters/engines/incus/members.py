"""Members of the cluster as last listed: a periodic list shows those that join, vanish or return."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from builderd.adapters.engines.incus.client import IncusOptions
from builderd.adapters.engines.incus.cluster import Cluster, Member
from builderd.domain.errors import BuilderdError
from builderd.domain.members import MemberReport
from builderd.domain.resources import Capacity

log = logging.getLogger(__name__)

#: Seconds between two lists, and after one that failed.
WATCH_SECONDS, AGAIN_SECONDS = 5.0, 1.0
#: A failure after so long is believed at once: Incus itself has tried again meanwhile.
SLOW_SECONDS = 5.0
#: Most seconds of a list: an Incus that is cut off from the others may take a minute.
LIST_SECONDS = 20.0

#: Called with the members that have come (joined or returned).
OnArrival = Callable[[Sequence[Member]], Awaitable[None]]


class Members:
    """``on_arrival`` prepares members that joined or returned, and those of ``prepare_again``.

    It is called again until it succeeds, one call at a time, and members are listed meanwhile.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._seen: Mapping[str, Member] = {}
        #: When a member was first seen away (``time.monotonic``).
        self._away: dict[str, float] = {}
        #: Members that ``on_arrival`` has prepared, or prepares now.
        self._prepared: set[str] = set()
        self._watching: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        #: Error of the last list, "" of one that succeeded.
        self._failure = ""
        #: Why the members do not answer, such as for want of a quorum; "" while they do.
        self.unavailable_reason = ""

    async def look(self) -> None:
        """List all members."""
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
        if self._seen.keys() - found.keys():
            # Removed: the access list no longer names it, and what Incus refused while it was evacuated is due.
            self.prepare_again()
        self._seen = found

    def prepared(self) -> None:
        """Note that all members that are online are prepared."""
        self._prepared = {name for name, member in self._seen.items() if member.online}

    def prepare_again(self, member: str = "") -> None:
        """Have a member prepared once more, without a name the service's own: something there is to be cleaned up."""
        self._prepared.discard(member or self._cluster.own)

    def watch(self, on_arrival: OnArrival) -> None:
        """List the members every few seconds, until ``close``."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(on_arrival))

    async def _watch(self, on_arrival: OnArrival) -> None:
        while True:
            await asyncio.sleep(min(AGAIN_SECONDS, WATCH_SECONDS) if self._failure else WATCH_SECONDS)
            begun = time.monotonic()
            try:
                async with asyncio.timeout(LIST_SECONDS):
                    await self.look()
            except Exception as error:
                self._note_failure(error, time.monotonic() - begun)
                continue
            if self.unavailable_reason:
                log.info("members of Incus answer again")
                # Clean-ups were refused meanwhile: apps stayed frozen after a copy, builds and volumes were left.
                self._prepared.clear()
            self._failure = self.unavailable_reason = ""
            arrived = [one for one in self._seen.values() if one.online and one.name not in self._prepared]
            if arrived and (self._preparing is None or self._preparing.done()):
                # Before the work: what happens meanwhile may have to be prepared again.
                self._prepared |= {member.name for member in arrived}
                self._preparing = asyncio.create_task(self._prepare(on_arrival, arrived))

    def _note_failure(self, error: Exception, seconds: float) -> None:
        message = f"Incus does not list the cluster's members, its database may have no quorum: {error!r}."
        if isinstance(error, BuilderdError):
            message = error.message
        if message != self._failure:
            log.warning("members of Incus not listed retry_seconds=%.0f error=%s", AGAIN_SECONDS, message)
        # A single failure may be a moment's, such as of a locked database.
        if self._failure or seconds >= SLOW_SECONDS:
            self.unavailable_reason = message
        self._failure = message

    async def _prepare(self, on_arrival: OnArrival, arrived: Sequence[Member]) -> None:
        try:
            await on_arrival(arrived)
        except Exception as error:
            names = {member.name for member in arrived}
            self._prepared -= names
            log.warning(
                "preparation of members failed retry_seconds=%.0f members=%s error=%s",
                *(WATCH_SECONDS, ",".join(sorted(names)), error),
                exc_info=not isinstance(error, BuilderdError),
            )

    async def close(self) -> None:
        tasks = {task for task in (self._watching, self._preparing) if task}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._watching = self._preparing = None

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

    def online_names(self) -> frozenset[str]:
        return frozenset(self._seen) - frozenset(self._away)

    def away_names(self) -> frozenset[str]:
        return frozenset(self._away)

    def leaving_names(self) -> frozenset[str]:
        return frozenset(member.name for member in self._seen.values() if member.leaving)

    def reports(self, options: IncusOptions, capacities: Mapping[str, Capacity]) -> Sequence[MemberReport]:
        """Return all members for the service."""
        now, monotonic = datetime.now(UTC), time.monotonic()
        reports = []
        for member in self._seen.values():
            away = monotonic - self._away[member.name] if member.name in self._away else None
            reports.append(
                MemberReport(
                    member.name,
                    member.address,
                    None if away is None else now - timedelta(seconds=away),
                    given_up=away is not None and options.recover == "backup" and away >= options.recover_after,
                    evacuating=member.leaving,
                    capacity=capacities.get(member.name),
                )
            )
        return reports
