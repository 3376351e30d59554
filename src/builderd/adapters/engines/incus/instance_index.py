"""Members and addresses of instances, and instances that are kept for logs, as the service made and ended them.

One service works on a project: it knows them without asking for Incus's list, which grows with all apps of the cluster.
The list is read once, and what later ones show is taken over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

from builderd.adapters.engines.incus.client import Json
from builderd.adapters.engines.incus.volumes import own_of

#: Asks Incus for instances.
Read = Callable[[], Awaitable[Sequence[Json]]]


@dataclass(eq=False, slots=True)
class _Reading:
    """A list that Incus was asked for. It is older than ``changed``: names that this service changed meanwhile."""

    changed: set[str] = field(default_factory=set)


class InstanceIndex:
    """``read_list`` returns all instances of the project, with the name alone of one whose member is away;
    ``read_addresses`` returns those that have an address, with nothing but it, on all members.
    """

    def __init__(self, read_list: Read, read_addresses: Read) -> None:
        self._read_list = read_list
        self._read_addresses = read_addresses
        self._is_loaded = False
        self._loading = asyncio.Lock()
        self._readings: set[_Reading] = set()
        self._addresses: dict[str, str] = {}
        self._members: dict[str, str] = {}
        #: When each instance was made that is kept for its log, by builder and name.
        self._kept: dict[str, dict[str, str]] = {}
        self._builders: dict[str, str] = {}

    async def load(self) -> None:
        """Read the list of instances and their addresses, the first time that they are needed."""
        async with self._loading:
            if not self._is_loaded:
                # First: the list corrects what has changed since.
                await self._read(self._read_addresses)
                await self.read_all()
                self._is_loaded = True

    async def read_all(self) -> Sequence[Json]:
        """Return all instances, and take them over; forget those that are gone."""
        known = set(self._members)
        return await self._read(self._read_list, known)

    async def _read(self, read: Read, known: Collection[str] = ()) -> Sequence[Json]:
        reading = _Reading()
        self._readings.add(reading)
        try:
            found = await read()
        finally:
            self._readings.discard(reading)
        for one in found:
            if one["name"] not in reading.changed:
                self._take_over(one)
        for name in set(known) - {one["name"] for one in found} - reading.changed:
            self._drop(name)
        return found

    def note(self, found: Json) -> None:
        """Take over an instance as this service made or changed it."""
        self._mark_changed(found["name"])
        self._take_over(found)

    def forget(self, name: str) -> None:
        """Take over that this service removed an instance."""
        self._mark_changed(name)
        self._drop(name)

    def _mark_changed(self, name: str) -> None:
        for reading in self._readings:
            reading.changed.add(name)

    def _take_over(self, found: Json) -> None:
        name, own = found["name"], own_of(found)
        self._members[name] = found.get("location") or ""
        if address := own.get("ip"):
            self._addresses[name] = address
        elif own:
            self._addresses.pop(name, None)
        if "removed" in own:
            builder = self._builders[name] = own.get("builder", "")
            self._kept.setdefault(builder, {})[name] = str(found.get("created_at", ""))

    def _drop(self, name: str) -> None:
        self._members.pop(name, None)
        self._addresses.pop(name, None)
        if (builder := self._builders.pop(name, None)) is not None:
            self._kept[builder].pop(name, None)
            if not self._kept[builder]:
                del self._kept[builder]

    def member(self, name: str) -> str | None:
        """Return the member of an instance, which it never leaves; None of one that is not known."""
        return self._members.get(name)

    def addresses(self) -> Collection[str]:
        """Return the addresses in use."""
        return set(self._addresses.values())

    def kept(self, builder: str) -> Sequence[str]:
        """Return the instances that are kept for the logs of a builder, the oldest first."""
        found = self._kept.get(builder, {})
        return sorted(found, key=lambda name: (found[name], name))
