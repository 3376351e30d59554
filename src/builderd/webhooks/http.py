"""Webhooks over HTTP, to public addresses only (protection against SSRF and DNS rebinding).

``GuardedBackend.connect_tcp`` resolves a host name, checks its addresses and connects to a checked one, so the name
cannot change in between. TLS still sends and verifies the host name of the URL.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

import httpcore

from builderd.core.addresses import Address, Network, embedded_ipv4, in_any_network, is_public, parse
from builderd.core.errors import machine_fault
from builderd.events.model import MAX_NOTE
from builderd.tokens.port import Reply

#: Seconds for one request, from the name lookup to the end of the response.
TIMEOUT = 15.0
#: Bytes of a response that are read.
MAX_RESPONSE = 16_384
#: Name lookups at the same time. They cannot be cancelled, so they have threads of their own.
RESOLVERS = 8
UNREACHABLE = "no connection: the host has no public address, or does not answer there"


class HttpWebhookSender:
    """Implements ``ports.outside.WebhookSender``.

    ``allow``: private networks that may be reached. ``never``: called for each request, networks that may not.
    ``timeout`` in seconds.
    """

    def __init__(
        self, allow: Sequence[Network] = (), never: Callable[[], Iterable[Network]] = tuple, timeout: float = TIMEOUT
    ) -> None:
        self._filter = AddressFilter(allow, never)
        self._resolvers = ThreadPoolExecutor(RESOLVERS, "webhook-dns")
        self._timeout = timeout
        self._tls = ssl.create_default_context()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._post(url, headers, body)
        except TimeoutError:
            return Reply(None, f"no answer within {self._timeout:g} seconds")
        except Exception as error:
            if (fault := machine_fault(error)) is not None:
                raise fault from error
            if isinstance(error, httpcore.ConnectError | OSError):
                return Reply(None, UNREACHABLE)
            return Reply(None, f"no answer: {type(error).__name__} {error}"[:MAX_NOTE])

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        # A new connection for each message: a kept one may lead to an address that is no longer allowed.
        async with (
            GuardedBackend(self._filter, self._resolvers) as backend,
            httpcore.AsyncConnectionPool(ssl_context=self._tls, max_connections=1, network_backend=backend) as pool,
        ):
            sent = {**headers, "Host": urlsplit(url).netloc, "Content-Length": str(len(body)), "Accept": "*/*"}
            async with pool.stream("POST", url, headers=list(sent.items()), content=body) as response:
                read = bytearray()
                async for chunk in response.aiter_stream():
                    read += chunk
                    if len(read) > MAX_RESPONSE:
                        break
                return Reply(response.status, read[:MAX_NOTE].decode(errors="replace"))

    def refuses(self, url: str) -> bool:
        address = parse(urlsplit(url).hostname or "")
        return address is not None and not self._filter.allows(address)


class AddressFilter:
    """Decides if a webhook may connect to an address."""

    def __init__(self, allow: Sequence[Network], never: Callable[[], Iterable[Network]]) -> None:
        self._allow = tuple(allow)
        self._never = never

    def allows(self, address: Address) -> bool:
        """Return True for an allowed address, and for a public one that is not this host's.

        An IPv6 address that carries an IPv4 address is judged by that one too.
        """
        embedded = embedded_ipv4(address) or address
        never = tuple(self._never())
        if in_any_network(embedded, never) or in_any_network(address, never):
            return False
        if in_any_network(embedded, self._allow):
            return True
        return is_public(embedded) and not _is_own(embedded)


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects only to hosts all of whose addresses the filter allows."""

    def __init__(self, address_filter: AddressFilter, resolvers: Executor) -> None:
        self._filter = address_filter
        self._resolvers = resolvers
        self._backend = httpcore.AnyIOBackend()
        self._opened: list[httpcore.AsyncNetworkStream] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # A timeout in the middle of a TLS handshake leaves the connection open.
        for stream in self._opened:
            with suppress(Exception):
                await stream.aclose()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(self._filter.allows, addresses)):
            raise httpcore.ConnectError(UNREACHABLE)
        for address in addresses:
            try:
                stream = await self._backend.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                if machine_fault(error) is not None:
                    raise
                continue
            self._opened.append(stream)
            return stream
        raise httpcore.ConnectError(UNREACHABLE)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError(UNREACHABLE)

    async def _resolve(self, host: str, port: int) -> list[Address]:
        """Resolve the host to all its addresses; none if it fails or one cannot be parsed.

        The resolver also normalises odd spellings of an address, such as ``0x7f.1``.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._resolvers, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError):
            # Without a free descriptor every name looks unknown: opening one raises the reason.
            socket.socket().close()
            return []
        addresses = [parse(str(sockaddr[0])) for *_, sockaddr in found]
        return [] if None in addresses else list(dict.fromkeys(item for item in addresses if item is not None))


def _is_own(address: Address) -> bool:
    """Return True for an address of this host: the kernel would send from that same address. Sends no packet."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
            return parse(probe.getsockname()[0]) == address
        except OSError:
            return False
