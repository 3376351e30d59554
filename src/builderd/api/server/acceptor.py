"""Accepting connections of one listener: those that present a token that was valid lately come first.

A flood fills the kernel's queue of connections, and a client that comes then stands behind it. So the queue is emptied
quickly, and connections wait here for their turn to be handed to asyncio, which costs more than to accept and close.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections import OrderedDict
from collections.abc import Callable

from builderd.api.server import listener as http_listener
from builderd.api.server.fair_queue import (
    ADDRESSES_AT_ONCE,
    TENANTS_AT_ONCE,
    FairQueue,
    RequestStarts,
    credential_of,
    longest,
)
from builderd.domain.addresses import network_of
from builderd.domain.ids import TenantId
from builderd.operations import proxy_header

#: Connections that are taken from the kernel in one iteration of the event loop.
ACCEPTED_AT_ONCE = 64
#: Connections that wait: those that have sent nothing, those without a token that was valid lately, those with one.
#: Beyond that the oldest is closed of the address, or tenant, that has most.
MAX_SILENT, MAX_STRANGERS, MAX_OF_TENANTS = 500, 500, 1_000
#: Bytes of a request that are looked at for its credential.
PEEKED_BYTES = 2_048
#: Seconds until the next try, after the process or the machine had no room for another connection.
RETRY_SECONDS = 1.0
_CREDENTIALS = re.compile(rb"\r\n(authorization|cookie):[ \t]*([^\r\n]*)", re.IGNORECASE)

log = logging.getLogger(__name__)


class Acceptor:
    """Accepts until it is closed. ``make`` returns the protocol of a connection.

    ``is_proxied``: a proxy names the client of each connection; anyone else's header is not believed.
    """

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], asyncio.Protocol],
        starts: RequestStarts,
        *,
        is_proxied: bool = False,
    ) -> None:
        self._listener = listener
        self._make = make
        self._starts = starts
        self._is_proxied = is_proxied
        self._loop = asyncio.get_running_loop()
        #: By address, each with the timer that ends its wait.
        self._silent: dict[str, OrderedDict[socket.socket, asyncio.TimerHandle]] = {}
        self._of_addresses = FairQueue[socket.socket](ADDRESSES_AT_ONCE, self._begin)
        self._of_tenants = FairQueue[socket.socket](TENANTS_AT_ONCE, self._begin)
        self._beginning: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Accept no more, and close what waits. The listener remains its owner's."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listener)
        silent = [(connection, network) for network, each in self._silent.items() for connection in each]
        for connection, network in silent:
            self._end_silence(connection, network)
        for connection in (
            *(connection for connection, _ in silent),
            *self._of_addresses.remove_excess(0),
            *self._of_tenants.remove_excess(0),
        ):
            connection.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as error:
                self._pause(error)
                break
            connection.setblocking(False)
            network = network_of(peer[0]) if peer else ""
            if not self._sort(connection, network):
                self._keep_silent(connection, network)
        self._close_excess()

    def _pause(self, error: OSError) -> None:
        log.warning("accepting a connection failed, retrying delay=%g error=%s", RETRY_SECONDS, error)
        self._loop.remove_reader(self._listener)
        self._retry = self._loop.call_later(RETRY_SECONDS, self._loop.add_reader, self._listener, self._accept)

    def _sort(self, connection: socket.socket, network: str) -> bool:
        """Have it take its turn, or close it if the client has; return False while it has sent nothing."""
        try:
            head = connection.recv(PEEKED_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            head = b""
        tenant_id = self._tenant_of(head)
        if not head:
            connection.close()
        elif tenant_id is not None:
            self._of_tenants.enter(tenant_id, connection)
        else:
            client = _client(head) if self._is_proxied else None
            self._of_addresses.enter(network_of(client) if client else network, connection)
        return True

    def _tenant_of(self, head: bytes) -> TenantId | None:
        fields = ((name.lower(), value) for name, value in _CREDENTIALS.findall(head))
        return self._starts.tenant_of(credential_of(fields))

    def _keep_silent(self, connection: socket.socket, network: str) -> None:
        timer = self._loop.call_later(http_listener.HEAD_SECONDS, self._close_silent, connection, network)
        self._silent.setdefault(network, OrderedDict())[connection] = timer
        self._loop.add_reader(connection, self._sent, connection, network)

    def _end_silence(self, connection: socket.socket, network: str) -> None:
        self._loop.remove_reader(connection)
        others = self._silent[network]
        others.pop(connection).cancel()
        if not others:
            del self._silent[network]

    def _sent(self, connection: socket.socket, network: str) -> None:
        self._end_silence(connection, network)
        if not self._sort(connection, network):
            self._keep_silent(connection, network)

    def _close_silent(self, connection: socket.socket, network: str) -> None:
        """Close it, unless it has sent something by now."""
        self._end_silence(connection, network)
        if not self._sort(connection, network):
            connection.close()

    def _close_excess(self) -> None:
        for network in longest(self._silent, sum(map(len, self._silent.values())) - MAX_SILENT):
            self._close_silent(next(iter(self._silent[network])), network)
        for connection in self._of_addresses.remove_excess(MAX_STRANGERS):
            self._close_stranger(connection)
        for connection in self._of_tenants.remove_excess(MAX_OF_TENANTS):
            connection.close()

    def _close_stranger(self, connection: socket.socket) -> None:
        """Close it, unless its token has arrived, or was found valid, by now."""
        try:
            tenant_id = self._tenant_of(connection.recv(PEEKED_BYTES, socket.MSG_PEEK))
        except OSError:
            tenant_id = None
        if tenant_id is not None:
            self._of_tenants.enter(tenant_id, connection)
        else:
            connection.close()

    def _begin(self, connection: socket.socket) -> bool:
        task = self._loop.create_task(self._connect(connection))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)
        return True

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, connection)
        except OSError:
            connection.close()


def _client(head: bytes) -> str | None:
    """Return the client's address from the proxy's header; None without one."""
    if not head.startswith(proxy_header.SIGNATURE):
        return None
    try:
        header = proxy_header.parse(head)
    except ValueError:
        return None
    return header.client[0] if header is not None else None
