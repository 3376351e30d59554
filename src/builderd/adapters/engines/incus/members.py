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
from builderd.domain.errors import BuilderdError, EngineUnavailable
from builderd.domain.members import MemberReport
from builderd.domain.quotas import Capacity

log = logging.getLogger(__name__)

WATCH_SECONDS = 5.0
#: Until the next look after one that failed.
AGAIN_SECONDS = 1.0
#: A look that failed after so long is believed at once: Incus itself has tried again meanwhile.
SLOW_SECONDS = 5.0
#: A look ends after so long: an Incus that is cut off from the others may keep it for a minute.
LOOK_SECONDS = 20.0

#: Called with the members that have come (joined or returned).
OnArrival = Callable[[Sequence[Member]], Awaitable[None]]


_UNANSWERED = "Incus does not tell the cluster's members: its database may have no quorum."


class Members:
    """``on_arrival`` prepares members that joined or returned, and those of ``prepare_again``.

    It is called again until it succeeds, one call at a time, and members are looked at meanwhile.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._seen: Mapping[str, Member] = {}
        #: When a member was first seen away, by the monotonic clock.
        self._away: dict[str, float] = {}
        #: Members that ``on_arrival`` has prepared, or prepares now.
        self._prepared: set[str] = set()
        self._watching: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        #: Error of the last look; "" of one that succeeded.
        self._failure = ""
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
        if self._seen.keys() - found.keys():
            # Removed: the access list names it no more, and what Incus refused to change while it was evacuated is due.
            self.prepare_again()
        self._seen = found

    def prepared(self) -> None:
        """Note that all members that are online are prepared."""
        self._prepared = {name for name, member in self._seen.items() if member.online}

    def prepare_again(self, member: str = "") -> None:
        """Have a member prepared once more, without a name the service's own: something there is to be cleaned up."""
        self._prepared.discard(member or self._cluster.own)

    def watch(self, on_arrival: OnArrival) -> None:
        """Look every few seconds, until ``close``."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(on_arrival))

    async def _watch(self, on_arrival: OnArrival) -> None:
        while True:
            await asyncio.sleep(min(AGAIN_SECONDS, WATCH_SECONDS) if self._failure else WATCH_SECONDS)
            if await self._observe() and (self._preparing is None or self._preparing.done()):
                self._begin_preparing(on_arrival)

    async def _observe(self) -> bool:
        """Look at the members, and note whether they answer. Return True if the look succeeded."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self.look()
        except TimeoutError:
            self._note_failure(EngineUnavailable(_UNANSWERED), time.monotonic() - begun)
            return False
        except Exception as error:
            self._note_failure(error, time.monotonic() - begun)
            return False
        if self.unavailable_reason:
            log.info("members of Incus answer again")
            # Clean-ups were refused meanwhile: apps stayed frozen after a copy, builds and volumes were left.
            self._prepared.clear()
        self._failure = self.unavailable_reason = ""
        return True

    def _note_failure(self, error: Exception, seconds: float) -> None:
        expected = isinstance(error, BuilderdError)
        message = (
            error.message if isinstance(error, BuilderdError) else f"The cluster's members cannot be read: {error!r}."
        )
        if message != self._failure:
            log.warning(
                "look at the members of Incus failed retry_seconds=%.0f error=%s",
                AGAIN_SECONDS,
                message,
                exc_info=not expected,
            )
        # A single one may be a moment's, such as of a locked database.
        if self._failure or seconds >= SLOW_SECONDS:
            self.unavailable_reason = message
        self._failure = message

    def _begin_preparing(self, on_arrival: OnArrival) -> None:
        arrived = [one for one in self._seen.values() if one.online and one.name not in self._prepared]
        if arrived:
            # Before the work: what happens meanwhile may have to be prepared again.
            self._prepared |= {member.name for member in arrived}
            self._preparing = asyncio.create_task(self._prepare(on_arrival, arrived))

    async def _prepare(self, on_arrival: OnArrival, arrived: Sequence[Member]) -> None:
        try:
            await on_arrival(arrived)
        except Exception as error:
            names = {member.name for member in arrived}
            self._prepared -= names
            log.warning(
                "preparation of members failed retry_seconds=%.0f members=%s error=%s",
                WATCH_SECONDS,
                ",".join(sorted(names)),
                error,
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

    def leaving_names(self) -> frozenset[str]:
        return frozenset(member.name for member in self._seen.values() if member.leaving)

    def away(self, name: str) -> float | None:
        """Return for how many seconds a member has been away; None of one that is online."""
        since = self._away.get(name)
        return None if since is None else time.monotonic() - since
