"""Generated from ``_async`` by ``script/generate_client.py``: change that."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from builderd.client._sync.pages import Pages, reader
from builderd.client._sync.transport import Transport
from builderd.client.models import Lease


class Leases:
    """Leases of a builder (``builder.leases``)."""

    def __init__(self, transport: Transport, uuid: str) -> None:
        self._transport = transport
        self._uuid = uuid

    def list(self) -> Pages[Lease]:
        """List the leases that last, oldest first."""
        return Pages(self._transport, f"/builders/{self._uuid}/leases", reader(Lease))

    def take(self, seconds: int, reason: str = "") -> Lease:
        """Take a lease of at most 3,600 seconds."""
        body = {"seconds": seconds, "reason": reason}
        return self._transport.read(Lease, "POST", f"/builders/{self._uuid}/leases", json=body)

    def renew(self, lease: str, seconds: int) -> Lease:
        """Renew a lease for so many seconds from now."""
        return self._transport.read(Lease, "PUT", f"/builders/{self._uuid}/leases/{lease}", json={"seconds": seconds})

    def end(self, lease: str) -> None:
        """End a lease early."""
        self._transport.request("DELETE", f"/builders/{self._uuid}/leases/{lease}")


class HeldLease:
    """Lease that is taken when a ``with`` block begins, and ended with it."""

    def __init__(self, leases: Leases, seconds: int, reason: str) -> None:
        self._leases = leases
        self._seconds = seconds
        self._reason = reason
        self._id = ""

    def __enter__(self) -> Self:
        self._id = (self._leases.take(self._seconds, self._reason)).id
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leases.end(self._id)

    def renew(self, seconds: int | None = None) -> Lease:
        """Renew it, for as long as it was taken unless told otherwise."""
        return self._leases.renew(self._id, seconds or self._seconds)
