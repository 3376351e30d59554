"""The listener: uvicorn, with limits on slow and large heads, and errors in the envelope.

uvicorn alone reads a head of any size for any time. Here a head must come within ``HEAD_SECONDS`` and
``MAX_HEAD_BYTES`` (and one piece from the network).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request
from websockets.server import ServerProtocol

from builderd.core.errors import BadRequest, BuilderdError, EngineUnavailable, TooLarge
from builderd.server.answers import HEADER, PREFIX, failure
from builderd.server.limits import CONNECTION, LimitedCalls, Limiter

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
#: Connections that the kernel completes ahead.
BACKLOG = 2048
#: PROXY protocol, version 1, with the client's address and port, and the most bytes that a line of it takes:
#: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2.1.
PROXY_HEADER = re.compile(rb"PROXY TCP[46] ([0-9A-Fa-f.:]{3,39}) [0-9A-Fa-f.:]{3,39} (\d{1,5}) \d{1,5}\r\n")
MAX_PROXY_HEADER = 107
#: How long calls that wait for an outcome may continue after SIGTERM, before they are cut off.
GRACE_SECONDS = 5


def server_config(app: ASGIApp, limiter: Limiter, protocol: type[LimitedProtocol] | None = None) -> uvicorn.Config:
    """Return uvicorn's configuration for serving an app. Logs go to the loggers that the caller has set up."""
    limited: Any = partial(protocol or LimitedProtocol, limiter)
    return uvicorn.Config(
        LimitedCalls(app, limiter),
        http=cast("type[asyncio.Protocol]", limited),
        ws=Socket,
        ws_max_size=MAX_MESSAGE_BYTES,
        backlog=BACKLOG,
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


class LimitedProtocol(HttpToolsProtocol):
    """HTTP protocol of one connection, with limits."""

    def __init__(self, limiter: Limiter, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app_state = {**self.app_state, CONNECTION: self}
        self.limiter = limiter
        #: From the end of one request to the end of the next one's head.
        self._in_head = True
        self._head_bytes = 0
        self._left = MAX_LINGER_BYTES
        self._timer: asyncio.TimerHandle | None = None
        self._is_refused = self._is_upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.limiter.add(self)
        self._arm(HEAD_SECONDS)

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def is_idle(self) -> bool:
        return not self._is_upgraded and (self.cycle is None or self.cycle.response_complete)

    @property
    def is_closing(self) -> bool:
        return self._is_refused or self.transport.is_closing()

    def abort(self) -> None:
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.limiter.remove(self)
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

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._disarm()
        super().on_headers_complete()

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
        self._is_upgraded = True
        super().handle_websocket_upgrade()

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
        self.transport.write(_whole(error))
        self._disarm()
        self._timer = self.loop.call_later(REFUSED_SECONDS, self.transport.abort)
        # A client that has reset the connection meanwhile.
        with contextlib.suppress(OSError):
            self.transport.write_eof()


class ProxiedProtocol(LimitedProtocol):
    """HTTP protocol of a connection that the previews' proxy passes on, beginning with the address of its client.

    It comes over a Unix socket that only the proxy can reach, so this header is believed: limits, rates and logs see
    the client's address. The client came over HTTPS, which ends at the proxy.
    """

    _begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # Not counted yet: the client is not known.
        HttpToolsProtocol.connection_made(self, transport)
        self._received = b""
        self._arm(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        if self._begun:
            super().data_received(data)
            return
        self._received += data
        header = PROXY_HEADER.match(self._received)
        if header is not None:
            self._begun = True
            self.client, self.scheme = (header[1].decode(), int(header[2])), "https"
            self.limiter.add(self)
            if rest := self._received[header.end() :]:
                super().data_received(rest)
            self._received = b""
        elif b"\n" in self._received or len(self._received) > MAX_PROXY_HEADER:
            self.transport.abort()


class Socket(WebSocketsSansIOProtocol):
    """A connection that has become a WebSocket, or whose handshake was refused."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._before: LimitedProtocol = self.app_state[CONNECTION]
        # The request log has a line for each; uvicorn's line would include the query, and so the command.
        self.logger = _TROUBLE

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.client = self._before.client
        self.scheme = "wss" if self._before.scheme == "https" else "ws"

    def connection_lost(self, exc: Exception | None) -> None:
        self._before.limiter.remove(self._before)
        super().connection_lost(exc)

    async def send(self, message: Any) -> None:
        await super().send(message)
        # A refusal ends the handshake too; uvicorn would log a missing handshake as an error.
        self.handshake_complete = self.handshake_complete or self.close_sent


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


def tune(listener: socket.socket) -> None:
    """Set the options that its TCP connections inherit."""
    # Without this the second piece of every answer waits 40 ms for the client's delayed ACK. asyncio sets it by
    # itself only for sockets that were made with their protocol's number.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def _whole(error: BuilderdError) -> bytes:
    """Return the complete HTTP answer to an error, as bytes."""
    response = failure(error).response()
    response.headers["Connection"] = "close"
    response.headers[HEADER] = str(uuid.uuid4())
    head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
    return STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body)


#: ip(7); the module ``socket`` has no name for it.
IP_FREEBIND = 15


class Server(uvicorn.Server):
    """Leaves the signals to the process, which has more to end than one server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Servers:
    """``async with``: servers are added while it lasts, and drained at its end."""

    def __init__(self) -> None:
        self._servers: list[tuple[Server, asyncio.Task[None]]] = []

    async def __aenter__(self) -> Servers:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server, _ in self._servers:
            server.should_exit = True
        await asyncio.gather(*(task for _, task in self._servers), return_exceptions=True)

    async def add(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        setting: str,
        limiter: Limiter | None = None,
        *,
        early: bool = False,
    ) -> None:
        """Serve on this address; return once it listens. ``early``: as for ``bind``.

        Raises ``EngineUnavailable`` with the name of the setting when the port is taken, and other errors of the start.
        """
        limiter = Limiter() if limiter is None else limiter
        await self._serve(bind(host, port, setting, early=early), server_config(app, limiter))

    async def add_behind_proxy(self, app: ASGIApp, path: Path, user: str | None, limiter: Limiter) -> None:
        """Serve connections that the previews' proxy passes on to this socket; ``limiter`` is that of ``add``.

        ``user`` of the machine may connect beside the service's own.
        """
        await self._serve(bind_path(path, user), server_config(app, limiter, ProxiedProtocol))

    async def _serve(self, listener: socket.socket, config: uvicorn.Config) -> None:
        server = Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        self._servers.append((server, task))
        while not server.started and not task.done():  # noqa: ASYNC110 -- uvicorn has no event for it
            await asyncio.sleep(0.005)
        if not server.started:
            listener.close()
            await task


def bind_path(path: Path, user: str | None) -> socket.socket:
    """Return a socket that listens there. It takes the place of an earlier one's in one step, with its rights set."""
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(unfinished))
        unfinished.chmod(0o600)
        if user is not None:
            shutil.chown(unfinished, user)
        listener.listen(BACKLOG)
        unfinished.replace(path)
    except OSError as error:
        listener.close()
        raise EngineUnavailable(f"Cannot listen on {path} for the previews' proxy: {error.strerror}.") from None
    listener.setblocking(False)
    return listener


def bind(host: str, port: int, setting: str, *, early: bool = False) -> socket.socket:
    """Return a socket that listens there. ``early``: also while the machine does not have the IP address yet.

    Raises ``EngineUnavailable`` with the name of the setting.
    """
    try:
        if early:
            listener = _bind_early(host, port)
        else:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise EngineUnavailable(
            f"Cannot listen on {host}:{port}: {error.strerror}. Choose another with {setting}."
        ) from None
    tune(listener)
    listener.setblocking(False)
    return listener


def _bind_early(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
