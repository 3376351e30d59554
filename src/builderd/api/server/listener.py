"""The listener: uvicorn, with limits on what a slow or hostile client can hold of it.

uvicorn alone reads a head of any size for any time. Here a head must come within ``HEAD_SECONDS`` and
``MAX_HEAD_BYTES`` (and one piece from the network), and ``connections`` limits how many there are. A refused
client gets the reason in the envelope.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request
from websockets.server import ServerProtocol

from builderd.api.server.answers import failure
from builderd.api.server.connections import STATE, Connections, CountedConnection, too_many_of_address
from builderd.api.server.fair_queue import credential_of
from builderd.api.server.paths import PREFIX
from builderd.api.server.request_ids import HEADER
from builderd.domain.errors import BadRequest, BuilderdError, TooLarge

HEAD_SECONDS = 10.0
MAX_HEAD_BYTES = 65_536
KEEP_ALIVE_SECONDS = 30
_TROUBLE = logging.getLogger(f"{__name__}.websockets")
_TROUBLE.setLevel(logging.WARNING)
#: Request targets that accept a WebSocket.
WEBSOCKETS = re.compile(
    rf"({PREFIX}/builders/[\w-]+/terminal|/builders/[\w-]+/terminal/session)(\?.*)?".encode(), re.ASCII
)
#: Largest message over a WebSocket.
MAX_MESSAGE_BYTES = 1 << 20
#: Seconds and bytes for which a client that was answered early may continue sending, so that it reads the answer.
LINGER_SECONDS = 30.0
MAX_LINGER_BYTES = 64_000_000
#: Seconds for which a client that was refused may still send before it is disconnected.
REFUSED_SECONDS = 1.0
#: Seconds after which a client that reads nothing of its answer is disconnected.
UNREAD_SECONDS = 120
#: Bytes of a TCP connection's answers in the kernel, which doubles it: 256 MB for a tenant's 1,000 connections. No
#: budget counts them, and the kernel would take 4 MB of each. A client 100 ms away gets 2.5 MB/s of an answer by it.
SEND_BUFFER = 128 << 10
#: How long calls that wait for an outcome may continue after SIGTERM, before they are cut off.
GRACE_SECONDS = 5


def server_config(
    app: ASGIApp, connections: Connections, protocol: type[LimitedProtocol] | None = None
) -> uvicorn.Config:
    """Return uvicorn's configuration for serving an app. Logs go to the loggers that the caller has set up."""
    return uvicorn.Config(
        app,
        http=_counted(protocol or LimitedProtocol, connections),
        ws=_counted(Socket, connections),
        ws_max_size=MAX_MESSAGE_BYTES,
        # The service starts and ends the apps: some have several servers, or another app before them.
        lifespan="off",
        log_config=None,
        # The request log has a line for each request, with its id.
        access_log=False,
        server_header=False,
        # Nothing in the service depends on where a request came from: no header may claim it.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def _counted(protocol: Any, connections: Connections) -> type[asyncio.Protocol]:
    """The protocol as uvicorn makes it for each connection, which then counts among these."""
    made: Any = partial(protocol, connections)
    return cast("type[asyncio.Protocol]", made)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Request that waits for its turn, or a WebSocket's handshake, which has no cycle. ``credential``: its hash."""

    credential: str | None
    cycle: RequestResponseCycle | None = None


class LimitedProtocol(HttpToolsProtocol):
    """HTTP protocol of one connection, with limits."""

    def __init__(self, counted: Connections, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._counted = counted
        #: From the end of one request to the end of the next one's head.
        self._in_head = True
        self._head_bytes = 0
        self._left = MAX_LINGER_BYTES
        self._timer: asyncio.TimerHandle | None = None
        self._is_refused = False
        #: What waits for its turn to start.
        self._waiting: _Waiting | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if (connection := transport.get_extra_info("socket")) is not None:
            _tune(connection)
        try:
            self._counted.admit(self, address_of(self.client))
        except BuilderdError as error:
            self._refuse(error)
        else:
            self._arm(HEAD_SECONDS)

    @property
    def is_idle(self) -> bool:
        if self._waiting is not None:
            return self._counted.starts.tenant_of(self._waiting.credential) is None
        return self.cycle is None or self.cycle.response_complete

    @property
    def presents_credential(self) -> bool:
        return self._waiting is not None and self._waiting.credential is not None

    def abort(self, error: BuilderdError) -> None:
        if self._waiting is not None and self.presents_credential:
            # It may be a valid token's first request: its client can tell a refusal from a fault.
            self._drop(self._waiting, error)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._counted.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
            self._arm(HEAD_SECONDS)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(TooLarge(f"The head of the request is too large: at most {MAX_HEAD_BYTES} bytes are taken."))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][STATE] = CountedConnection(self, self._counted)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._disarm()
        self._counted.touch(self)
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Start the request that is next on this connection once it is its turn; uvicorn starts it at once."""
        counted: CountedConnection = cycle.scope["state"][STATE]
        counted.credential = credential_of(cycle.scope["headers"])
        start = super()._start_asgi_task
        self._wait_for_turn(_Waiting(counted.credential, cycle), lambda: start(cycle, app))

    def _wait_for_turn(self, waiting: _Waiting, start: Callable[[], None]) -> None:
        if waiting.credential is None and not self._counted.may_start_without_credential(self):
            self._drop(waiting, too_many_of_address())
            return

        def start_if_needed() -> bool:
            self._waiting = None
            if self._is_refused or self.transport.is_closing():
                return False
            start()
            return True

        self._waiting = waiting
        self._counted.starts.enter(waiting.credential, address_of(self.client), start_if_needed)

    def _drop(self, waiting: _Waiting, error: BuilderdError) -> None:
        """Refuse what was not started, and with it the connection."""
        if waiting.cycle is not None:
            waiting.cycle.response_complete = True
        self._refuse(error)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle is not None and self.cycle.response_complete:
            self._left -= len(body)
            if self._left < 0:
                self.transport.close()

    def on_message_complete(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._counted.touch(self)
        if self.cycle.more_body:
            self._left = MAX_LINGER_BYTES
            self._arm(LINGER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest("This is not an HTTP/1.1 request."))

    def _should_upgrade_to_ws(self) -> bool:
        """Return whether the target accepts a WebSocket and the handshake is valid; other offers are ignored."""
        return WEBSOCKETS.fullmatch(self.url) is not None and _is_handshake(
            self.parser.get_method(), self.url, self.headers
        )

    def handle_websocket_upgrade(self) -> None:
        """Make it a WebSocket once it is its turn; nothing more is read until then."""
        upgrade = super().handle_websocket_upgrade

        def start() -> None:
            self.flow.resume_reading()
            # From here on the WebSocket counts.
            self._counted.forget(self)
            upgrade()

        self.flow.pause_reading()
        self._wait_for_turn(_Waiting(credential_of(self.headers)), start)

    def _unsupported_upgrade_warning(self) -> None:
        """Ignore offers of another protocol, as HTTP allows (RFC 9110, 7.8), without a log line."""

    def _arm(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, self._too_late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if self._in_head and self._head_bytes:
            self._refuse(BadRequest(f"The head of the request did not arrive within {HEAD_SECONDS:g} seconds."))
        else:
            self.transport.close()

    def _refuse(self, error: BuilderdError) -> None:
        """Send the error and close the connection; only close it where an answer is under way already.

        What the client has sent meanwhile is read and dropped: to close before would reset the connection, and the
        client, or the proxy in front, would often not see the error.
        """
        if self.transport.is_closing() or self._is_refused:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()
            return
        self._is_refused = True
        self.flow.resume_reading()
        self.transport.write(_whole(error))
        if not self._counted.may_linger(self):
            self.transport.close()
            return
        self._disarm()
        self._timer = self.loop.call_later(REFUSED_SECONDS, self.transport.abort)
        # A client that has reset the connection meanwhile.
        with contextlib.suppress(OSError):
            self.transport.write_eof()


class Socket(WebSocketsSansIOProtocol):
    """A connection that has become a WebSocket, or whose handshake was refused."""

    def __init__(self, counted: Connections, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._counted = counted
        # The request log has a line for each; uvicorn's line would include the query, and so the command.
        self.logger = _TROUBLE

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        try:
            self._counted.admit(self, address_of(self.client))
        except BuilderdError:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._counted.forget(self)
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Return False: a session is in use for as long as it is open."""
        return False

    @property
    def presents_credential(self) -> bool:
        """Return False: no request waits on it."""
        return False

    def abort(self, error: BuilderdError) -> None:
        self.transport.abort()

    async def run_asgi(self) -> None:
        credential = credential_of(self.scope["headers"])
        self.scope["state"][STATE] = CountedConnection(self, self._counted, credential)
        await super().run_asgi()

    async def send(self, message: Any) -> None:
        await super().send(message)
        # A refusal ends the handshake too; uvicorn would log a missing handshake as an error.
        self.handshake_complete = self.handshake_complete or self.close_sent


def address_of(client: tuple[str, int] | None) -> str:
    """Return the address of a peer; empty when it is gone already."""
    return client[0] if client else ""


def _is_handshake(method: bytes, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Return whether the websockets library would accept this handshake.

    The library answers a handshake that it refuses by itself, without a request id and the envelope.
    """
    judge = ServerProtocol()
    lines = (name + b": " + value for name, value in headers)
    judge.receive_data(b"\r\n".join((method + b" " + url + b" HTTP/1.1", *lines, b"", b"")))
    return any(
        isinstance(event, Request) and judge.accept(event).status_code == 101 for event in judge.events_received()
    )


def _tune(connection: socket.socket) -> None:
    # Without this the second piece of every answer waits 40 ms for the client's delayed ACK. asyncio sets it by
    # itself only for sockets that were made with their protocol's number.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def _whole(error: BuilderdError) -> bytes:
    """Return the complete HTTP answer to an error, as bytes."""
    response = failure(error).response()
    response.headers["Connection"] = "close"
    response.headers[HEADER] = str(uuid.uuid4())
    head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
    return STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body)
