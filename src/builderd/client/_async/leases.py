"""Leases: a builder is busy until then, and neither freezes nor stops for idleness."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from builderd.client._async.pages import AsyncPages, reader
from builderd.client._async.transport import AsyncTransport
from builderd.client.models import Lease
from builderd.client.paths import api_path


class AsyncLeases:
    """Leases of a builder (``builder.leases``)."""

    def __init__(self, transport: AsyncTransport, uuid: str) -> None:
        self._transport = transport
        self._uuid = uuid

    def list(self) -> AsyncPages[Lease]:
        """List the leases that last, oldest first."""
        return AsyncPages(self._transport, api_path("builders", self._uuid, "leases"), reader(Lease))

    async def take(self, seconds: int, reason: str = "") -> Lease:
        """Take a lease of at most 3,600 seconds."""
        body = {"seconds": seconds, "reason": reason}
        return await self._transport.read(Lease, "POST", api_path("builders", self._uuid, "leases"), json=body)

    async def renew(self, lease: str, seconds: int) -> Lease:
        """Renew a lease for so many seconds from now."""
        return await self._transport.read(
            Lease, "PUT", api_path("builders", self._uuid, "leases", lease), json={"seconds": seconds}
        )

    async def end(self, lease: str) -> None:
        """End a lease early."""
        await self._transport.request("DELETE", api_path("builders", self._uuid, "leases", lease))


class AsyncHeldLease:
    """Lease that is taken when a ``with`` block begins, and ended with it."""

    def __init__(self, leases: AsyncLeases, seconds: int, reason: str) -> None:
        self._leases = leases
        self._seconds = seconds
        self._reason = reason
        self._id = ""

    async def __aenter__(self) -> Self:
        self._id = (await self._leases.take(self._seconds, self._reason)).id
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leases.end(self._id)

    async def renew(self, seconds: int | None = None) -> Lease:
        """Renew it, for as long as it was taken unless told otherwise."""
        return await self._leases.renew(self._id, seconds or self._seconds)
