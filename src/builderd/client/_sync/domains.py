"""Generated from ``_async`` by ``script/generate_client.py``: change that."""

from __future__ import annotations

from urllib.parse import quote

from builderd.client._sync.pages import Pages, reader
from builderd.client._sync.transport import Transport
from builderd.client.models import Domain


class Domains:
    """Domains of a builder (``builder.domains``)."""

    def __init__(self, transport: Transport, uuid: str) -> None:
        self._transport = transport
        self._path = f"/builders/{uuid}/domains"

    def list(self) -> Pages[Domain]:
        """List them by host, with what is wrong with each."""
        return Pages(self._transport, self._path, reader(Domain))

    def add(self, host: str) -> Domain:
        """Add a host name of your own; it is checked, and gets a certificate, in the background."""
        return self._transport.read(Domain, "POST", self._path, json={"host": host})

    def check(self, host: str) -> Domain:
        """Have it checked now, after its records were changed."""
        return self._transport.read(Domain, "POST", f"{self._path}/{quote(host, safe='')}/check")

    def remove(self, host: str) -> None:
        """Remove it: it leads nowhere from then on."""
        self._transport.request("DELETE", f"{self._path}/{quote(host, safe='')}")
