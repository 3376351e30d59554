"""Connections that the previews' proxy passes on to the API: each begins with the address of its client.

They come over a Unix socket that only the proxy can reach, so their header is believed. From there on they are treated
like connections from the client itself: limits, rates and logs see its address.
"""

from __future__ import annotations

import asyncio
from typing import Any

from builderd.api.server.listener import HEAD_SECONDS, LimitedProtocol
from builderd.operations import proxy_header


class ProxiedProtocol(LimitedProtocol):
    """HTTP protocol of a connection whose header has to come first; without it, the connection is closed.

    The client came over HTTPS, which ends at the proxy.
    """

    _raw: asyncio.Transport | None = None
    _begun = False
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._raw, self._received = transport, bytearray()
        self._header_timer = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._begun:
            super().data_received(data)
            return
        assert self._raw is not None
        self._received += data
        try:
            header = proxy_header.parse(self._received)
        except ValueError:
            self._raw.abort()
            return
        if header is not None:
            self._begin(self._raw, header)

    def _begin(self, raw: asyncio.Transport, header: proxy_header.ProxyHeader) -> None:
        self._begun = True
        self._cancel_timer()
        passed: Any = ProxiedTransport(raw, header.client)
        super().connection_made(passed)
        # Of a connection that was refused, ``data_received`` drops what came with the header.
        if (rest := bytes(self._received[header.size :])) and not raw.is_closing():
            super().data_received(rest)
        self._received.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        if self._begun:
            super().connection_lost(exc)

    def _cancel_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class ProxiedTransport:
    """The transport, but with the client's address, and as one that is encrypted. uvicorn asks for both."""

    def __init__(self, transport: asyncio.Transport, client: tuple[str, int]) -> None:
        self._transport = transport
        self._own = {"socket": None, "peername": client, "sockname": None, "sslcontext": True}

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._own[name] if name in self._own else self._transport.get_extra_info(name, default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
