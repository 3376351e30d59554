"""Identity of the cluster, and the claim of the service that works on it.

The claim is in the configuration of an empty project: a change of one is stored by quorum and told to no member, so a
member that was just cut off does not hold it up (that of a profile took 6 to 20 s then).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.errors import IncusNotFound
from builderd.adapters.engines.incus.instance import OWN
from builderd.adapters.engines.incus.options import IncusOptions

#: Its name follows that of the project of the apps.
SUFFIX = "-service"
_CLAIM = f"{OWN}service"
_EMPTY = dict.fromkeys(
    ("features.images", "features.profiles", "features.storage.volumes", "features.networks"), "false"
)


class Witness:
    """The calls of ``ports.engine.ClusterProvider``. Each has a connection of its own: they are rare."""

    def __init__(self, options: IncusOptions) -> None:
        self._options = options

    async def disks_id(self) -> str:
        """Return the fingerprint of the certificate, which all members share, with project and pool."""
        async with self._client() as client:
            environment = (await client.get(""))["environment"]
        return f"{environment['certificate_fingerprint'][:16]}/{self._options.project}/{self._options.pool}"

    async def claimant(self) -> str:
        async with self._client() as client:
            try:
                found = await client.get(self._path, project="default")
            except IncusNotFound:
                return ""
        return str(found["config"].get(_CLAIM, ""))

    async def claim(self, service: str) -> None:
        content: dict[str, Any] = {"description": "the service of builderd", "config": {**_EMPTY, _CLAIM: service}}
        async with self._client() as client:
            try:
                await client.call("PUT", self._path, content, project="default")
            except IncusNotFound:
                made = {"name": f"{self._options.project}{SUFFIX}", **content}
                await client.call("POST", "/projects", made, project="default")

    @property
    def _path(self) -> str:
        return f"/projects/{self._options.project}{SUFFIX}"

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[IncusClient]:
        client = IncusClient(self._options)
        try:
            yield client
        finally:
            await client.close()
