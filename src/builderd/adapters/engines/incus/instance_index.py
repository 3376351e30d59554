"""Members and addresses of instances, and instances that are kept for logs, as the service made and ended them.

One service works on a project: it knows them without asking for Incus's list, which grows with all apps of the cluster.
The list is read once, and what later ones show is taken over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

from builderd.adapters.engines.incus.client import Json
from builderd.adapters.engines.incus.volumes import own_of


class InstanceIndex:
    """``read_all`` returns all instances of the project."""

    def __init__(self, read_all: Callable[[], Awaitable[Sequence[Json]]]) -> None:
        self._read_all = read_all
        self._is_loaded = False
        self._loading = asyncio.Lock()
        self._addresses: dict[str, str] = {}
        self._members: dict[str, str] = {}
        #: When each instance was made that is kept for its log, by builder and name.
        self._kept: dict[str, dict[str, str]] = {}
        self._builders: dict[str, str] = {}

    async def load(self) -> None:
        """Read the list of instances, the first time that it is needed."""
        async with self._loading:
            if not self._is_loaded:
                for found in await self._read_all():
                    self.note(found)
                self._is_loaded = True

    def note(self, found: Json) -> None:
        """Take over an instance as it was made, changed or listed; one whose member is away shows nothing."""
        name, own = found["name"], own_of(found)
        self._members[name] = found.get("location") or ""
        if address := own.get("ip"):
            self._addresses[name] = address
        elif own:
            self._addresses.pop(name, None)
        if "removed" in own:
            builder = self._builders[name] = own.get("builder", "")
            self._kept.setdefault(builder, {})[name] = str(found.get("created_at", ""))

    def forget(self, name: str) -> None:
        """Take over that an instance is gone."""
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
