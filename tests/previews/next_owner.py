"""An address that changes its owner while a request to the first one is open."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from tests.previews.proxy import free_port
from tests.previews.visitor import PATIENCE

from builderd.previews.model import Address

#: Seconds within which a proxy would have sent the request again.
AGAIN = 1.5


class NextOwner:
    """The first owner takes one request and never answers it."""

    def __init__(self) -> None:
        self.address = Address("127.0.0.1", free_port())
        self._stack = ExitStack()
        self._first = self._stack.enter_context(socket.create_server((self.address.ip, self.address.port)))
        self._first.settimeout(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def take_over(self) -> bytes:
        """Give the address to the next owner once the request is here; return what that one gets."""
        request, _ = self._first.accept()
        with request:
            request.settimeout(PATIENCE)
            assert request.recv(65_536)
            self._first.close()
            # Reset, not closed, when it ends.
            request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            following = self._stack.enter_context(socket.create_server((self.address.ip, self.address.port)))
        following.settimeout(AGAIN)
        with suppress(TimeoutError), following.accept()[0] as connection:
            connection.settimeout(PATIENCE)
            return connection.recv(65_536)
        return b""
