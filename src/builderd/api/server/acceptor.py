"""Accepting connections of one listener: what presents a token that was valid lately comes first.

A flood fills the kernel's queue of connections, and who comes then stands behind it: the queue is emptied quickly, and
only what is next is made a connection of the event loop, which costs more than accepting and closing it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections import deque
from collections.abc import Callable
from functools import partial

from builderd.api.server.fair_queue import ADDRESSES_AT_ONCE, FairQueue, RequestStarts, credential_of
from builderd.domain.addresses import network_of
from builderd.operations import proxy_header

#: Connections that are taken from the kernel in one iteration of the event loop.
ACCEPTED_AT_ONCE = 64
#: Connections that have sent nothing, which are made such of the event loop in one iteration.
SILENT_AT_ONCE = 16
#: Connections that wait: of one address without a token that was valid lately, and of those that have sent nothing.
#: One more closes the oldest.
MAX_WAITING, MAX_SILENT = 500, 1_000
#: Bytes of a request that are looked at for its credential.
PEEKED_BYTES = 2_048
#: Seconds until the next try, after the process or the machine had no room for another connection.
RETRY_SECONDS = 1.0
_CREDENTIALS = re.compile(rb"\r\n(authorization|cookie):[ \t]*([^\r\n]*)", re.IGNORECASE)

log = logging.getLogger(__name__)


class Acceptor:
    """Accepts until it is closed. ``make`` returns the protocol of a connection."""

    def __init__(self, listener: socket.socket, make: Callable[[], asyncio.Protocol], starts: RequestStarts) -> None:
        self._listener = listener
        self._make = make
        self._starts = starts
        self._loop = asyncio.get_running_loop()
        self._silent: deque[tuple[socket.socket, str]] = deque()
        self._waiting: dict[str, deque[socket.socket]] = {}
        self._turns = FairQueue(ADDRESSES_AT_ONCE)
        self._beginning: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Accept no more, and close what waits. The listener remains its owner's."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listener)
        for connection in (
            *(one for one, _ in self._silent),
            *(one for each in self._waiting.values() for one in each),
        ):
            connection.close()
        self._silent.clear()
        self._waiting.clear()

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            connection.setblocking(False)
            address = peer[0] if peer else ""
            if not self._sort(connection, address):
                self._keep_silent(connection, address)

    def _pause(self, error: OSError) -> None:
        log.warning("accepting a connection failed, retrying delay=%g error=%s", RETRY_SECONDS, error)
        self._loop.remove_reader(self._listener)
        self._retry = self._loop.call_later(RETRY_SECONDS, self._loop.add_reader, self._listener, self._accept)

    def _sort(self, connection: socket.socket, address: str) -> bool:
        """Begin with a connection, or have it wait; return False where it has sent nothing."""
        try:
            head = connection.recv(PEEKED_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            connection.close()
            return True
        if self._starts.is_known(_credential(head)):
            self._begin(connection)
        else:
            self._enter(connection, network_of(_client(head) or address))
        return True

    def _keep_silent(self, connection: socket.socket, address: str) -> None:
        if not self._silent:
            self._loop.call_soon(self._look_again)
        elif len(self._silent) >= MAX_SILENT:
            self._silent.popleft()[0].close()
        self._silent.append((connection, address))

    def _look_again(self) -> None:
        """Sort what has sent something since; begin with some of the others, which may be slow to send."""
        begun = 0
        for _ in range(min(len(self._silent), ACCEPTED_AT_ONCE)):
            connection, address = self._silent.popleft()
            if not self._sort(connection, address):
                self._begin(connection)
                begun += 1
                if begun == SILENT_AT_ONCE:
                    break
        if self._silent:
            self._loop.call_soon(self._look_again)

    def _enter(self, connection: socket.socket, network: str) -> None:
        """Have it wait for its turn among those of its address."""
        queue = self._waiting.setdefault(network, deque())
        if len(queue) >= MAX_WAITING:
            queue.popleft().close()
        queue.append(connection)
        self._turns.enter(network, partial(self._begin_next, network))

    def _begin_next(self, network: str) -> bool:
        queue = self._waiting.get(network)
        if not queue:
            self._waiting.pop(network, None)
            return False
        self._begin(queue.popleft())
        return True

    def _begin(self, connection: socket.socket) -> None:
        task = self._loop.create_task(self._connect(connection))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, connection)
        except OSError:
            connection.close()


def _credential(head: bytes) -> str | None:
    """Return the hash of the credential in the beginning of a request."""
    return credential_of((name.lower(), value) for name, value in _CREDENTIALS.findall(head))


def _client(head: bytes) -> str | None:
    """Return the client's address from the proxy's header; None without one."""
    if not head.startswith(proxy_header.SIGNATURE):
        return None
    try:
        header = proxy_header.parse(head)
    except ValueError:
        return None
    return header.client[0] if header is not None else None
