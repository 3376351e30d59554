"""Parts of Incus that the service needs: project, network with its access list, image; and the members' state."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

from builderd.adapters.engines.incus.client import IncusClient, IncusOptions, Json
from builderd.adapters.engines.incus.errors import IncusConflict, IncusError, IncusNotFound
from builderd.adapters.engines.incus.image import Image, metadata
from builderd.adapters.engines.incus.instance import OWN
from builderd.adapters.engines.incus.network import access_list, network_config, same_rules
from builderd.domain.errors import EngineUnavailable, NoCapacity
from builderd.domain.resources import GB, Capacity
from builderd.ports.engine import Progress

log = logging.getLogger(__name__)

_BOUNDARY = "builderd-image-part"
_PIECE_BYTES = 1 << 20
#: For so long a member whose pool was full gets no new disks while others do.
FULL_SECONDS = 60.0
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
        #: When a member's pool was last found full, by the monotonic clock.
        self._full: dict[str, float] = {}

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
                "a disk takes long and a limit may not hold: use btrfs or zfs."
            )

    async def ensure_project(self) -> None:
        if self._options.project == "default":
            return
        body = {"name": self._options.project, "description": "apps of builderd", "config": FEATURES}
        with suppress(IncusConflict):
            await self._client.call("POST", "/projects", body, project="default")

    async def ensure_network(
        self, inside_port: int, allow: Sequence[IPv4Network], deny: Sequence[IPv4Network], resolvers: Sequence[str]
    ) -> None:
        """Create or update the access list and the network."""
        members = await self.members()
        name, addresses = self._options.network, [member.address for member in members if member.address]
        rules = access_list(self._options, inside_port, allow, deny, resolvers, addresses)
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
        body: dict[str, Any] = {"name": name, "type": "bridge", "config": {}}
        if self.clustered:
            for member in members:
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
        head = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        try:
            done = await self._client.upload("/images", _image_parts(image, self.architecture), head)
            fingerprint = done["metadata"]["fingerprint"]
        except IncusConflict as error:
            # Sent by a service that was killed before it could name it.
            fingerprint = error.message.rpartition("fingerprint ")[2].strip('". ') or ""
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
        online = [member.name for member in await self.members() if member.online]
        found = await asyncio.gather(*(self._capacity(name, overcommit) for name in online))
        return dict(zip(online, found, strict=True))

    async def _capacity(self, member: str, overcommit: float) -> Capacity:
        have, space = await asyncio.gather(self._client.get("/resources", target=member), self._space(member))
        disk = space["total"] / GB * overcommit
        return Capacity(have["cpu"]["total"], have["memory"]["total"] / GB, disk)

    async def _space(self, member: str) -> Json:
        """Return used and total bytes of the pool on a member."""
        path = f"/storage-pools/{self._options.pool}/resources"
        found: Json = await self._client.get(path, target=member, project="default")
        return found["space"]  # type: ignore[no-any-return]

    async def free_share(self) -> float:
        """Return the free part of the pool on the member with the least."""
        spaces = await asyncio.gather(*(self._space(one.name) for one in await self.members() if one.online))
        return min((1 - space["used"] / space["total"] for space in spaces if space["total"]), default=0.0)

    async def place(self, disks: Sequence[str]) -> str:
        """Return the online member with the fewest of these disks (their members). Raises ``NoCapacity``.

        One whose pool was full a moment ago is taken where all were: space may have come back there.
        """
        online = [member.name for member in await self.members() if member.online and not member.leaving]
        if not online:
            raise NoCapacity("No member of the cluster takes new disks: see builderd cluster status.")
        return min(online, key=lambda name: (self._was_full(name), disks.count(name), name != self.own, name))

    def note_full(self, member: str) -> None:
        """Note that a member's pool has no space left: new disks go to others for a while."""
        if not self._was_full(member):
            log.warning("storage pool is full pool=%s member=%s", self._options.pool, member or "-")
        self._full[member] = time.monotonic()

    def _was_full(self, member: str) -> bool:
        return time.monotonic() - self._full.get(member, -math.inf) < FULL_SECONDS


async def _image_parts(image: Image, architecture: str) -> AsyncIterator[bytes]:
    """Yield the body of a split image's upload (multipart/form-data)."""
    yield _part("metadata") + metadata(image, architecture) + b"\r\n" + _part("rootfs")
    with image.rootfs.open("rb") as rootfs:
        while piece := await asyncio.to_thread(rootfs.read, _PIECE_BYTES):
            yield piece
    yield f"\r\n--{_BOUNDARY}--\r\n".encode()


def _part(name: str) -> bytes:
    return (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()


def _member(found: Json) -> Member:
    status = found["status"]
    leaving = status == "Evacuated" or bool((found.get("config") or {}).get(EVACUATE))
    return Member(found["server_name"], _host(found["url"]), online=status in _ANSWERS, leaving=leaving)


def _host(url: str) -> str:
    """Return the address in ``https://address:8443``; "" where it is a name."""
    host = url.partition("://")[2].rpartition(":")[0].strip("[]")
    try:
        socket.inet_aton(host)
    except OSError:
        return ""
    return host
