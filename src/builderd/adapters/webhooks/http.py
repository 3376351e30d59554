"""Webhooks over HTTP, to nobody near.

Where the name of a host leads is looked up, judged and connected to in one place, ``Dial.connect_tcp``: between the
look and the connection nobody can change what the name means. TLS goes on naming and checking the host of the URL.
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

from builderd.domain.addresses import Address, Network, embedded_ipv4, in_any_network, is_public, parse
from builderd.domain.webhooks import MAX_NOTE
from builderd.ports.webhooks import Reply

#: All of one request, from the look-up of the name to the end of the answer, in seconds.
TIMEOUT = 15.0
#: More of an answer is not read.
MAX_ANSWER = 16_384
#: Look-ups at the same time. They cannot be broken off, and must not hold up the service's other threads.
RESOLVERS = 8
UNREACHABLE = "no connection: the host has no public address, or does not answer there"


class HttpWebhookSender:
    """``allow``: networks that may be reached although near. ``never``: asked each time, those that may not."""

    def __init__(
        self, allow: Sequence[Network] = (), never: Callable[[], Iterable[Network]] = tuple, timeout: float = TIMEOUT
    ) -> None:
        self._guard = Guard(allow, never)
        self._resolvers = ThreadPoolExecutor(RESOLVERS, "webhook-names")
        self._timeout = timeout
        self._tls = ssl.create_default_context()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._post(url, headers, body)
        except TimeoutError:
            return Reply(None, f"no answer within {self._timeout:g} seconds")
        except (httpcore.ConnectError, OSError):
            return Reply(None, UNREACHABLE)
        except Exception as error:
            return Reply(None, f"no answer: {type(error).__name__} {error}"[:MAX_NOTE])

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        # A connection of its own for each message: none is kept to an address that was judged long ago.
        async with (
            Dial(self._guard, self._resolvers) as dial,
            httpcore.AsyncConnectionPool(ssl_context=self._tls, max_connections=1, network_backend=dial) as pool,
        ):
            sent = {**headers, "Host": urlsplit(url).netloc, "Content-Length": str(len(body)), "Accept": "*/*"}
            async with pool.stream("POST", url, headers=list(sent.items()), content=body) as response:
                read = bytearray()
                async for piece in response.aiter_stream():
                    read += piece
                    if len(read) > MAX_ANSWER:
                        break
                return Reply(response.status, read[:MAX_NOTE].decode(errors="replace"))

    def refuses(self, url: str) -> bool:
        address = parse(urlsplit(url).hostname or "")
        return address is not None and not self._guard.allows(address)


class Guard:
    """Which addresses may be reached."""

    def __init__(self, allow: Sequence[Network], never: Callable[[], Iterable[Network]]) -> None:
        self._allow = tuple(allow)
        self._never = never

    def allows(self, address: Address) -> bool:
        """Public and not this host's own, or allowed; of what carries another address, that is judged as well."""
        meant = embedded_ipv4(address) or address
        never = tuple(self._never())
        if in_any_network(meant, never) or in_any_network(address, never):
            return False
        if in_any_network(meant, self._allow):
            return True
        return is_public(meant) and not _is_own(meant)


class Dial(httpcore.AsyncNetworkBackend):
    """Connects to hosts all of whose addresses the guard allows."""

    def __init__(self, guard: Guard, resolvers: Executor) -> None:
        self._guard = guard
        self._resolvers = resolvers
        self._plain = httpcore.AnyIOBackend()
        self._opened: list[httpcore.AsyncNetworkStream] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # Who runs out of time in the middle of a TLS handshake would leave the connection open.
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
        if not addresses or not all(map(self._guard.allows, addresses)):
            raise httpcore.ConnectError(UNREACHABLE)
        for address in addresses:
            try:
                stream = await self._plain.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
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
        """All addresses of the name. What the resolver takes for an address in an odd form, it writes out here."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._resolvers, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError):
            return []
        addresses = [parse(str(place[0])) for *_, place in found]
        return [] if None in addresses else list(dict.fromkeys(one for one in addresses if one is not None))


def _is_own(address: Address) -> bool:
    """Whether this host itself answers there: a packet to it would leave from that very address. None is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
            return parse(probe.getsockname()[0]) == address
        except OSError:
            return False
