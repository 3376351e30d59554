"""Custom volumes of the pool: made, copied, limited, deleted. Disks and layers are such volumes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from urllib.parse import parse_qs, unquote

from builderd.adapters.engines.incus.client import (
    IncusAmbiguous,
    IncusClient,
    IncusConflict,
    IncusError,
    IncusNotFound,
    Json,
    member_away,
)
from builderd.adapters.engines.incus.instance import OWN

_BUSY_TRIES, _BUSY_SECONDS = 50, 0.1


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
