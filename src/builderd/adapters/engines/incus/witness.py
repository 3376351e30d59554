"""Identity of the cluster, and the claim of the service that works on it, which is stored as a profile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.cluster import Cluster
from builderd.adapters.engines.incus.errors import IncusNotFound
from builderd.adapters.engines.incus.instance import OWN
from builderd.adapters.engines.incus.options import IncusOptions

PROFILE = "builderd-service"
_CLAIM = f"{OWN}service"


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
                profile = await client.get(f"/profiles/{PROFILE}")
            except IncusNotFound:
                return ""
        return str(profile["config"].get(_CLAIM, ""))

    async def claim(self, service: str) -> None:
        content: dict[str, Any] = {"description": "the service of builderd that works", "config": {_CLAIM: service}}
        async with self._client() as client:
            try:
                await client.call("PUT", f"/profiles/{PROFILE}", content)
            except IncusNotFound:
                await Cluster(client, self._options).ensure_project()
                await client.call("POST", "/profiles", {"name": PROFILE, **content})

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[IncusClient]:
        client = IncusClient(self._options)
        try:
            yield client
        finally:
            await client.close()
