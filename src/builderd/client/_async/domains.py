"""Custom domains of a builder."""

from __future__ import annotations

from builderd.client._async.pages import AsyncPages, reader
from builderd.client._async.transport import AsyncTransport
from builderd.client.models import Domain
from builderd.client.paths import api_path


class AsyncDomains:
    """Domains of a builder (``builder.domains``)."""

    def __init__(self, transport: AsyncTransport, uuid: str) -> None:
        self._transport = transport
        self._uuid = uuid
        self._path = api_path("builders", uuid, "domains")

    def list(self) -> AsyncPages[Domain]:
        """List them by host, with what is wrong with each."""
        return AsyncPages(self._transport, self._path, reader(Domain))

    async def add(self, host: str) -> Domain:
        """Add a host name of your own; it is checked, and gets a certificate, in the background."""
        return await self._transport.read(Domain, "POST", self._path, json={"host": host})

    async def check(self, host: str) -> Domain:
        """Have it checked now, after its records were changed."""
        return await self._transport.read(Domain, "POST", api_path("builders", self._uuid, "domains", host, "check"))

    async def remove(self, host: str) -> None:
        """Remove it: it leads nowhere from then on."""
        await self._transport.request("DELETE", api_path("builders", self._uuid, "domains", host))
