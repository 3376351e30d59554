"""Notes of work on members that are away, done once they return.

It stands in the configuration of the service's project (``user.builderd.<kind>.<id>``, its member): the database of
the cluster keeps it over restarts of this service.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.cluster import FEATURES
from builderd.adapters.engines.incus.instance import OWN


class Deferred:
    """Notes of one kind, by id."""

    def __init__(self, client: IncusClient, kind: str) -> None:
        self._client = client
        self._prefix = f"{OWN}{kind}."
        self._path = f"/projects/{client.project}"

    async def all(self) -> Mapping[str, str]:
        """Return the member of each noted id."""
        project = await self._client.get(self._path, project="default")
        return {
            key.removeprefix(self._prefix): member
            for key, member in project["config"].items()
            if key.startswith(self._prefix)
        }

    async def note(self, subject: str, member: str) -> None:
        """Note an id. Idempotent."""
        await self._change({f"{self._prefix}{subject}": member}, ())

    async def remove(self, subjects: Collection[str]) -> None:
        """Remove notes whose work is done. Idempotent."""
        if subjects:
            await self._change({}, {f"{self._prefix}{subject}" for subject in subjects})

    async def _change(self, added: Mapping[str, str], removed: Collection[str]) -> None:
        async with self._client.changing_project:
            project = await self._client.get(self._path, project="default")
            left = {key: value for key, value in project["config"].items() if key not in removed}
            # PUT: with a PATCH, Incus takes features that it leaves out as wanted.
            body = {"description": project["description"], "config": {**FEATURES, **left, **added}}
            await self._client.call("PUT", self._path, body, project="default")
