"""Parts of Incus that the service needs: project, network with its access list, image; and the members' state."""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

from builderd.core.errors import BuilderdError, EngineUnavailable, NoCapacity
from builderd.core.members import MemberReport
from builderd.core.resources import GB, Capacity, MachineUse
from builderd.engine.incus.client import IncusClient, IncusConflict, IncusError, IncusNotFound, IncusOptions, Json
from builderd.engine.incus.image import Image, metadata
from builderd.engine.incus.instance import OWN
from builderd.engine.incus.network import access_list, network_config, same_rules
from builderd.engine.port import EngineOptions, Progress

log = logging.getLogger(__name__)

#: A member with less free space than this part of its pool gets no new disks.
LEAST_FREE = 0.1
#: Key of a member that is to be emptied, and states of one that answers.
EVACUATE = f"{OWN}evacuate"
_ANSWERS = ("Online", "Evacuated")
#: The project shares networks with others: Incus has bridges in its default project only.
FEATURES = {
    "features.images": "true",
    "features.profiles": "true",
    "features.storage.volumes": "true",
    "features.storage.buckets": "false",
    "features.networks": "false",
}


@dataclass(frozen=True, slots=True)
class Member:
    """Member of the cluster; a server without one is the only member, named ""."""

    name: str
    address: str
    online: bool
    #: It is to be emptied for maintenance, or Incus has evacuated it: it gets no new disks.
    leaving: bool = False


class Cluster:
    def __init__(self, client: IncusClient, options: IncusOptions) -> None:
        self._client = client
        self._options = options
        self.clustered = False
        #: The member that answers at the socket.
        self.own = ""
        self.architecture = ""

    async def look(self) -> None:
        """Ask what this server is. Raises ``EngineUnavailable``, also when it does not trust the service."""
        server: Json = await self._client.get("")
        if server.get("auth") != "trusted":
            raise EngineUnavailable(
                f"Incus at {self._options.place} does not trust this service: add its certificate by "
                "incus config trust add-certificate FILE."
            )
        environment = server["environment"]
        self.clustered = bool(environment.get("server_clustered"))
        self.own = str(environment.get("server_name", "")) if self.clustered else ""
        self.architecture = environment["architectures"][0]

    async def members(self) -> Sequence[Member]:
        if not self.clustered:
            return [Member("", "", online=True)]
        found = await self._client.get("/cluster/members", recursion="1")
        return [_member(one) for one in found]

    async def ensure_pool(self) -> None:
        """Raise ``EngineUnavailable`` unless the pool exists and can limit volumes."""
        try:
            pool = await self._client.get(f"/storage-pools/{self._options.pool}", project="default")
        except IncusNotFound:
            raise EngineUnavailable(
                f"Incus has no storage pool {self._options.pool!r}: make one by incus storage create "
                f"{self._options.pool} btrfs, or set incus.pool."
            ) from None
        if pool["driver"] not in ("btrfs", "zfs"):
            raise EngineUnavailable(
                f"The storage pool {self._options.pool!r} of Incus is of the kind {pool['driver']}, on which a copy of "
                "a disk takes long and a limit may be exceeded: use btrfs or zfs."
            )

    async def ensure_project(self) -> None:
        if self._options.project == "default":
            return
        body = {"name": self._options.project, "description": "apps of builderd", "config": FEATURES}
        with suppress(IncusConflict):
            await self._client.call("POST", "/projects", body, project="default")

    async def ensure_network(self, options: EngineOptions, resolvers: Sequence[str]) -> None:
        """Create or update the network and its access list, which names all members."""
        members = await self.members()
        name, addresses = self._options.network, [member.address for member in members if member.address]
        rules = access_list(self._options, options.inside_port, options.allow, options.deny, resolvers, addresses)
        await self._ensure_list(name, rules, [member.name for member in members if member.leaving])
        config = network_config(self._options)
        try:
            found = await self._client.get(f"/networks/{name}")
        except IncusNotFound:
            await self._create_network(name, config, members)
            return
        if not config.items() <= found["config"].items():
            await self._client.call(
                "PUT", f"/networks/{name}", {"description": "apps of builderd", "config": found["config"] | config}
            )

    async def _ensure_list(self, name: str, rules: Json, leaving: Sequence[str]) -> None:
        """Create or change the access list. Incus refuses any change of it while a member is evacuated."""
        path = f"/network-acls/{name}"
        with suppress(IncusConflict):
            await self._client.call("POST", "/network-acls", {"name": name})
        found = await self._client.get(path)
        if same_rules(found, rules):
            return
        try:
            # PUT: Incus empties what a PATCH leaves out.
            await self._client.call("PUT", path, rules)
        except IncusError as error:
            if not leaving:
                raise
            raise EngineUnavailable(
                f"Incus does not change the access list {name} while a member is evacuated ({', '.join(leaving)}): run "
                f"builderd cluster restore or remove for it. {error.message}",
                retry_after=60,
            ) from error

    async def _create_network(self, name: str, config: Json, members: Sequence[Member]) -> None:
        body: Json = {"name": name, "type": "bridge", "config": {}}
        for member in members if self.clustered else ():
            with suppress(IncusConflict):
                await self._client.call("POST", "/networks", body, target=member.name)
        try:
            await self._client.call("POST", "/networks", {**body, "config": config})
        except IncusConflict:
            return
        except IncusError as error:
            raise EngineUnavailable(
                f"The network {name!r} of Incus could not be made: {error.message} Set incus.network and incus.subnet."
            ) from error

    async def ensure_image(self, image: Image, progress: Progress) -> None:
        """Send the image unless Incus has it. Each member unpacks it before its first instance."""
        with suppress(IncusNotFound):
            await self._client.get(f"/images/aliases/{image.name}")
            return
        progress("image: sending it to Incus (once)")
        try:
            with image.rootfs.open("rb") as rootfs:
                # In this order.
                parts = {"metadata": io.BytesIO(metadata(image, self.architecture)), "rootfs": rootfs}
                done = await self._client.upload("/images", parts)
            fingerprint = done["metadata"]["fingerprint"]
        except IncusConflict:
            # Sent by a service that was killed before it could name it.
            found = await self._client.get("/images", recursion="1")
            described = f"builderd base {image.base_id}"
            same = [one for one in found if one["properties"].get("description") == described and not one["aliases"]]
            if not same:
                raise
            fingerprint = same[0]["fingerprint"]
        with suppress(IncusConflict):
            await self._client.call("POST", "/images/aliases", {"name": image.name, "target": fingerprint})

    async def capacities(self, overcommit: float) -> Mapping[str, Capacity]:
        """Return what each member has that is online."""
        found: dict[str, Capacity] = {}
        for name in [member.name for member in await self.members() if member.online]:
            have, space = await asyncio.gather(self._client.get("/resources", target=name), self._space(name))
            disk = space["total"] / GB * overcommit
            found[name] = Capacity(have["cpu"]["total"], have["memory"]["total"] / GB, disk)
        return found

    async def _space(self, member: str) -> Json:
        """Return used and total bytes of the pool on a member."""
        path = f"/storage-pools/{self._options.pool}/resources"
        found: Json = await self._client.get(path, target=member, project="default")
        return found["space"]  # type: ignore[no-any-return]

    async def use(self, overcommit: float) -> MachineUse:
        """Return what is used of the members that are online; no more disks while all pools are nearly full."""
        have = [await self._client.get("/resources", target=one.name) for one in await self.members() if one.online]
        spaces = [await self._space(one.name) for one in await self.members() if one.online]
        load = sum(one.get("load", {}).get("Average1Min", 0.0) for one in have)  # Incus 6.0 has none.
        memory, memories = (sum(one["memory"][name] for one in have) / GB for name in ("used", "total"))
        disk, total = (sum(space[name] for space in spaces) / GB for name in ("used", "total"))
        capacity = Capacity(sum(one["cpu"]["total"] for one in have), memories, total * overcommit)
        disks = 0 if all(map(_is_nearly_full, spaces)) else int(capacity.disk)
        return MachineUse(capacity, load, memory, disk, total, disks)

    async def free_share(self) -> float:
        """Return the free part of the pool on the member with the least."""
        spaces = await asyncio.gather(*(self._space(one.name) for one in await self.members() if one.online))
        return min((1 - space["used"] / space["total"] for space in spaces if space["total"]), default=0.0)

    async def place(self, disks: Sequence[str]) -> str:
        """Placement of a new disk: return the online member with the fewest of ``disks``, given by their members.

        One whose pool is nearly full gets none. Raises ``NoCapacity``.
        """
        online = [member.name for member in await self.members() if member.online and not member.leaving]
        if not online:
            raise NoCapacity("No member of the cluster takes new disks: see builderd cluster status.")
        full = dict(zip(online, await asyncio.gather(*map(self._is_full, online)), strict=True))
        if all(full.values()):
            raise NoCapacity(
                f"The storage pool {self._options.pool} is nearly full on all members: the last tenth is kept for the "
                "apps that are there. Delete a builder that is not needed, or enlarge the pool.",
                retry_after=60,
            )
        return min(online, key=lambda name: (full[name], disks.count(name), name != self.own, name))

    async def _is_full(self, member: str) -> bool:
        """Return True also for a member that does not answer."""
        try:
            return _is_nearly_full(await self._space(member))
        except EngineUnavailable:
            return True


def _is_nearly_full(space: Json) -> bool:
    return bool(space["total"] - space["used"] < LEAST_FREE * space["total"])


def _member(found: Json) -> Member:
    status = found["status"]
    leaving = status == "Evacuated" or bool((found.get("config") or {}).get(EVACUATE))
    # https://address:8443, or a name, or an IPv6 address.
    host = found["url"].partition("://")[2].rpartition(":")[0]
    with suppress(ValueError):
        return Member(found["server_name"], str(IPv4Address(host)), online=status in _ANSWERS, leaving=leaving)
    return Member(found["server_name"], "", online=status in _ANSWERS, leaving=leaving)


#: Seconds between two lists, and after one that failed.
WATCH_SECONDS, AGAIN_SECONDS = 5.0, 1.0
#: A failure after so long is believed at once: Incus itself has tried again meanwhile.
SLOW_SECONDS = 5.0
#: Most seconds of a list: an Incus that is cut off from the others may take a minute.
LIST_SECONDS = 20.0


class Members:
    """Members as last listed. Without a cluster the only one is named ""."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        #: The service's own member, "" without a cluster.
        self.own = cluster.own
        self._seen: Mapping[str, Member] = {}
        #: When a member was first seen away (``time.monotonic``).
        self._away: dict[str, float] = {}
        #: Members as they were when ``on_change`` was last called.
        self._prepared: Mapping[str, Member] = {}
        self._watching: asyncio.Task[None] | None = None
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
            if member.online != (before is None or before.online):
                log.warning("member of Incus changed member=%s online=%s", name, member.online)
        self._away = {name: self._away.get(name, now) for name, member in found.items() if not member.online}
        self._seen = found

    def watch(self, on_change: Callable[[], Awaitable[None]]) -> None:
        """List the members every few seconds, until ``close``.

        ``on_change`` is called when one joined, went, returned, was restored or removed, until it succeeds.
        """
        if self._watching is None:
            self._prepared = self._seen
            self._watching = asyncio.create_task(self._watch(on_change))

    async def _watch(self, on_change: Callable[[], Awaitable[None]]) -> None:
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
            self._failure = self.unavailable_reason = ""
            if self._seen == self._prepared:
                continue
            self._prepared = self._seen
            try:
                await on_change()
            except Exception as error:
                self._prepared = {}
                is_known = isinstance(error, BuilderdError)
                log.warning("preparation of members failed, retrying error=%s", error, exc_info=not is_known)

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
