"""Instances and custom volumes of the service's project: found, made, changed, removed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, unquote

from builderd.core.errors import NoCapacity
from builderd.engine.incus.client import (
    NO_SPACE,
    IncusAmbiguous,
    IncusClient,
    IncusConflict,
    IncusError,
    IncusNotFound,
    IncusOptions,
    Json,
    PoolFull,
    member_away,
    pool_full,
)
from builderd.engine.incus.instance import OWN, Instance, document
from builderd.engine.incus.network import addresses, gateway

log = logging.getLogger(__name__)

#: Seconds within which Incus ends a killed instance.
_KILL_SECONDS = 30
#: Attempts while Incus still works on the end of an instance or with a volume.
_BUSY_TRIES, _BUSY_SECONDS = 100, 0.1
#: Room that a full root is given for Incus's own file, and the most of it.
_ROOM_BYTES, _MOST_ROOM_BYTES = 4 << 20, 64 << 20
_BUSY = ("busy", "already running a", "instance is running", "in use", "currently")


class InstanceIndex:
    """Instances as made here and as Incus listed them.

    One service works on a project: it knows them without asking for Incus's list, which grows with all apps.
    """

    def __init__(self) -> None:
        self._known: dict[str, Json] = {}

    def note(self, found: Json) -> None:
        """Take over an instance; one whose member is away is listed without keys."""
        known = self._known.get(found["name"], {"config": {}})
        own = {f"{OWN}{key}": value for key, value in own_of(found).items()}
        at = found.get("created_at", known.get("at", ""))
        self._known[found["name"]] = {"location": found.get("location"), "at": at, "config": own or known["config"]}

    def forget(self, name: str) -> None:
        self._known.pop(name, None)

    def member(self, name: str) -> str | None:
        """Return the member of an instance, which it never leaves; None of one that is not known."""
        return member_of(self._known[name]) if name in self._known else None

    def addresses(self) -> Collection[str]:
        """Return the addresses in use."""
        return {ip for one in self._known.values() if (ip := own_of(one).get("ip"))}

    def kept(self, builder: str) -> Sequence[str]:
        """Return the instances that are kept for the logs of a builder, the oldest first."""
        own = {name: own_of(one) for name, one in self._known.items()}
        found = [name for name, keys in own.items() if "removed" in keys and keys.get("builder") == builder]
        return sorted(found, key=lambda name: (self._known[name]["at"], name))


class Instances:
    """``image``: alias of the image of all instances, and its unpacked size; ``away`` returns members that are away.

    ``reserved`` returns True for an address that no instance may get now.
    """

    def __init__(
        self,
        client: IncusClient,
        options: IncusOptions,
        image: tuple[str, int],
        away: Callable[[], Collection[str]] = frozenset,
        reserved: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.client = self._client = client
        self._options = options
        self.image, self._image_bytes = image
        self._away = away
        self._reserved = reserved
        self.pool = options.pool
        self.index = InstanceIndex()
        self._is_loaded = False
        self._loading = asyncio.Lock()

    def is_away(self, found: Json) -> bool:
        """Return True if the instance is one of a member that is away."""
        return found["status"] == "Error" and found.get("location") in self._away()

    def template(self, *, cpu: float, memory_bytes: int, processes: int, own_bytes: int = 256 << 20) -> Instance:
        """Return an instance without a name; its root has room for ``own_bytes`` beside the image."""
        return Instance("", self.image, self.pool, cpu, memory_bytes, processes, self._image_bytes + own_bytes)

    async def find(self, name: str) -> Json | None:
        away = self._away()
        if away and self.index.member(name) in {None, *away}:
            # Incus would wait for a member that is away; in its list such an instance has the status Error.
            listed = await self._client.get("/instances", recursion="1", filter=f"name eq {name}")
            return next((one for one in listed if one["name"] == name), None)
        try:
            found: Json = await self._client.get(f"/instances/{name}")
        except IncusNotFound:
            return None
        return found

    async def all(self) -> Sequence[Json]:
        found: Sequence[Json] = await self._client.get("/instances", recursion="1")
        for one in found:
            self.index.note(one)
        return found

    async def load_index(self) -> None:
        """Read the list of instances and their addresses, the first time that they are needed."""
        async with self._loading:
            if self._is_loaded:
                return
            # From Incus's database: its list shows no address of an instance whose member is away.
            leases = await self._client.get(f"/networks/{self._options.network}/leases")
            for one in leases:
                if one["type"] == "static":
                    known = {"name": one["hostname"], "location": one["location"]}
                    self.index.note({**known, "config": {f"{OWN}ip": one["address"]}})
            await self.all()
            self._is_loaded = True

    async def create(self, instance: Instance, member: str, *, egress: bool) -> str:
        """Make and start an instance at a free address, which is returned. Raises ``NoCapacity``."""
        await self.load_index()
        address = self._choose_address(egress=egress)
        placed = replace(
            instance,
            network=self._options.network,
            address=address,
            gateway=gateway(self._options.subnet),
            prefix=self._options.subnet.prefixlen,
            routed=egress,
            own={**instance.own, "ip": address},
        )
        made = {"name": placed.name, "location": member, "config": {f"{OWN}ip": address}}
        if self.index.member(placed.name) is None:
            # Incus may make it though the call fails: its address is taken until it is deleted.
            self.index.note(made)
        try:
            await self._client.call("POST", "/instances", document(placed, self._client.project), target=member)
        except PoolFull as error:
            raise pool_full(NO_SPACE, member) from error
        self.index.note(made)
        return address

    def _choose_address(self, *, egress: bool) -> str:
        used, network = self.index.addresses(), addresses(self._options.subnet, egress=egress)
        for _ in range(1000):
            address = str(network[random.randrange(16, network.num_addresses - 1)])  # noqa: S311 (no secret)
            if address not in used and not self._reserved(address):
                return address
        raise NoCapacity(f"The network {self._options.network} of Incus has no free address.")

    async def kept(self, builder: str) -> Sequence[str]:
        """Return the instances that are kept for a builder's logs, the oldest first, of members that answer."""
        await self.load_index()
        away = self._away()
        return [name for name in self.index.kept(builder) if self.index.member(name) not in away]

    async def mark(self, name: str, own: Mapping[str, str]) -> None:
        """Set keys of the service's own on an instance."""
        await self._patient("PATCH", f"/instances/{name}", {"config": {f"{OWN}{k}": v for k, v in own.items()}})

    async def kill(self, name: str) -> None:
        """End all processes of an instance. Idempotent."""
        body = {"action": "stop", "force": True, "timeout": _KILL_SECONDS}
        with suppress(IncusNotFound):
            try:
                await self._patient("PUT", f"/instances/{name}/state", body)
            except IncusError as error:
                if "already stopped" not in error.message and "not running" not in error.message:
                    raise

    async def delete(self, name: str) -> None:
        """Delete an instance, killed first if it runs. Idempotent."""
        await self.kill(name)
        with suppress(IncusNotFound):
            await self._patient("DELETE", f"/instances/{name}")
        self.index.forget(name)

    async def strip(self, found: Json, own: Mapping[str, str]) -> None:
        """Take all volumes from a stopped instance, and set keys of the service's own."""
        config = found["config"] | {f"{OWN}{name}": value for name, value in own.items()}
        kept = ("architecture", "profiles", "ephemeral", "description")
        body = {name: found[name] for name in kept} | {
            "config": config,
            "devices": {name: device for name, device in found["devices"].items() if name == "root"},
        }
        await self._patient("PUT", f"/instances/{found['name']}", body)
        self.index.note({**found, "config": config})

    async def _enlarge(self, path: str) -> None:
        """Give a full instance's root some more room, a limited number of times. Raises ``NoCapacity``."""
        found: Json = await self._client.get(path)
        root = found["devices"]["root"]
        size = int(root["size"]) + _ROOM_BYTES
        if size > int(own_of(found).get("root", root["size"])) + _MOST_ROOM_BYTES:
            raise NoCapacity(f"The root of the instance {found['name']} is full, and so Incus cannot change it.")
        config = {f"{OWN}root": own_of(found).get("root", root["size"])}
        devices = {"root": {**root, "size": str(size)}}
        await self._client.call("PATCH", path, {"config": config, "devices": devices})

    async def _patient(self, method: str, path: str, body: Any = None) -> None:
        """Call again while Incus still works on the instance, such as on its end; make room in one that is full."""
        for attempt in range(_BUSY_TRIES):
            try:
                if path.count("/") == 2 and body is not None:
                    await self.change(path.rpartition("/")[2], method, body)
                else:
                    await self._client.call(method, path, body)
            except PoolFull:
                raise
            except NoCapacity:
                # Incus keeps a file of its own on the instance's root, which the app may have filled.
                await self._enlarge(path)
            except IncusError as error:
                words = error.message.lower()
                if attempt == _BUSY_TRIES - 1 or isinstance(error, IncusNotFound) or "already stopped" in words:
                    raise
                if not isinstance(error, IncusConflict) and not any(busy in words for busy in _BUSY):
                    raise
            else:
                return
            await asyncio.sleep(_BUSY_SECONDS)

    async def change(self, name: str, method: str, body: Json) -> None:
        """Change configuration and devices of an instance, by PUT or PATCH.

        Incus records a change, and then writes a copy of the instance's configuration on its root. A change whose copy
        a full pool had no space for counts all the same: removals depend on it. Raises ``PoolFull`` of any other.
        """
        path = f"/instances/{name}"
        try:
            await self._client.call(method, path, body)
        except PoolFull:
            if not _has_changes(await self._client.get(path), body, whole=method == "PUT"):
                raise
            log.warning("pool is full: change recorded without Incus's own copy instance=%s", name)


def _has_changes(found: Json, wanted: Json, *, whole: bool) -> bool:
    """Return True if an instance has these keys and devices; ``whole``: no other devices.

    Incus changes keys of its own, and drops those without a value.
    """
    config = {name: value for name, value in wanted.get("config", {}).items() if not name.startswith("volatile.")}
    devices = wanted.get("devices", {})
    has_devices = devices == found["devices"] if whole else devices.items() <= found["devices"].items()
    return bool(has_devices and all(found["config"].get(name, "") == value for name, value in config.items()))


class Volumes:
    """Volumes by name. Names are unique on a member: layers lie on each one that uses them.

    ``away`` returns the members that are away.
    """

    def __init__(self, client: IncusClient, pool: str, away: Callable[[], Collection[str]]) -> None:
        self._client = client
        self._away = away
        self._pool = pool
        self._path = f"/storage-pools/{pool}/volumes/custom"

    async def find(self, name: str, member: str = "") -> Json | None:
        """Return a volume, of any member unless one is given. Raises ``MemberAway``."""
        path = f"{self._path}/{name}"
        if away := self._away():
            # Incus would wait for a member that is away; its list comes from the cluster's database.
            places = [member] if member else await self.places(name)
            if not places:
                return None
            member = next((place for place in places if place not in away), "")
            if not member:
                raise member_away(places[0])
        with suppress(IncusNotFound):
            try:
                return await self._client.get(path, target=member)  # type: ignore[no-any-return]
            except IncusAmbiguous:
                # A layer that was copied to another member.
                member = min(await self.places(name), default=member)
                return await self._client.get(path, target=member)  # type: ignore[no-any-return]
        return None

    async def places(self, name: str) -> Sequence[str]:
        """Return the members that have a volume of this name, also those that are away."""
        return [member for found, member in await self.placed() if found == name]

    async def placed(self) -> Sequence[tuple[str, str]]:
        """Return name and member of all volumes. For more of them Incus looks through all instances for each."""
        found = []
        for url in await self._client.get(self._path):
            path, _, query = url.partition("?")
            # A server without a cluster names no member.
            member = parse_qs(query).get("target", [""])[0]
            found.append((unquote(path.rpartition("/volumes/custom/")[2]), member))
        return found

    async def all(self) -> Sequence[Json]:
        found: Sequence[Json] = await self._client.get(self._path, recursion="1")
        return [volume for volume in found if "/" not in volume["name"]]

    def is_at_hand(self, volume: Json) -> bool:
        """Return True unless its member is away."""
        return volume.get("location") not in self._away()

    async def create(self, name: str, size: int, own: Mapping[str, str], member: str, mode: str = "0711") -> None:
        """Make an empty volume with a hard limit. Raises ``IncusConflict``."""
        await self._client.call(
            "POST", self._path, {"name": name, "config": _config(size, own) | {"initial.mode": mode}}, target=member
        )

    async def copy(
        self, source: str, target: str, size: int, own: Mapping[str, str], member: str, from_member: str = ""
    ) -> None:
        """Copy a volume, on one member in no time. Raises ``IncusNotFound``, ``IncusConflict``."""
        origin: Json = {"type": "copy", "pool": self._pool, "name": source, "volume_only": True}
        if from_member and from_member != member:
            origin = await self._remote(source, from_member)
        body = {"name": target, "config": _config(size, own), "source": origin}
        await self._client.call("POST", self._path, body, target=member)

    async def _remote(self, source: str, member: str) -> Json:
        """Have a member offer a volume, and return where another one gets it.

        That is what Incus does itself for a ``location``, but 6.0 looks for the volume in the default project then.
        """
        found, server = await asyncio.gather(
            self._client.get(f"/cluster/members/{member}"), self._client.get("", target=member)
        )
        offer = {"name": source, "migration": True, "volume_only": True}
        offered = await self._client.begin("POST", f"{self._path}/{source}", offer, target=member)
        return {
            "type": "migration",
            "mode": "pull",
            "operation": f"{found['url']}/1.0/operations/{offered['id']}",
            "secrets": offered["metadata"],
            "certificate": server["environment"]["certificate"],
            "volume_only": True,
        }

    async def rename(self, name: str, new: str, member: str) -> None:
        await self._client.call("POST", f"{self._path}/{name}", {"name": new}, target=member)

    async def change(self, name: str, member: str, own: Mapping[str, str], size: int | None = None) -> None:
        """Set keys of the service's own, and the limit where one is given."""
        config = {f"{OWN}{key}": value for key, value in own.items()}
        if size is not None:
            config["size"] = str(size)
        await self._client.call("PATCH", f"{self._path}/{name}", {"config": config}, target=member)

    async def used_bytes(self, name: str, member: str = "") -> int:
        """Return the bytes that no clone shares; 0 when the volume is gone, or on another member than the service's."""
        with suppress(IncusNotFound):
            state: Json = await self._client.get(f"{self._path}/{name}/state", target=member)
            return int((state.get("usage") or {}).get("used", 0))
        return 0

    async def delete(self, name: str, member: str = "") -> None:
        """Delete a volume. Idempotent. Raises ``IncusConflict`` when an instance uses it."""
        for attempt in range(_BUSY_TRIES):
            try:
                await self._client.call("DELETE", f"{self._path}/{name}", target=member)
            except IncusError as error:
                if isinstance(error, IncusNotFound):
                    return
                if attempt == _BUSY_TRIES - 1 or isinstance(error, IncusConflict):
                    raise
                await asyncio.sleep(_BUSY_SECONDS)
            else:
                return


def own_of(found: Json) -> dict[str, str]:
    """Return the service's own keys of a volume or an instance; none of an instance whose member is away."""
    config = found["config"] or {}
    return {name.removeprefix(OWN): value for name, value in config.items() if name.startswith(OWN)}


def member_of(found: Json) -> str:
    """Return the member of an instance or a volume; a server without a cluster calls itself "none"."""
    location = str(found.get("location") or "")
    return "" if location == "none" else location


def users_of(volume: Json) -> Sequence[str]:
    """Return the names of the instances that have this volume, running or not."""
    paths = (path.partition("?")[0].rpartition("/") for path in volume.get("used_by") or ())
    return [name for parent, _, name in paths if parent.endswith("/instances")]


def _config(size: int, own: Mapping[str, str]) -> dict[str, str]:
    return {
        "size": str(size),
        # Each instance has ids of its own: a volume is mounted as if it were its instance's.
        "security.shifted": "true",
        **{f"{OWN}{key}": value for key, value in own.items()},
    }
