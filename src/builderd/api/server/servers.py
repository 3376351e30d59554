"""Several HTTP servers in one event loop, which end together and in good order."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import uvicorn
from starlette.types import ASGIApp

from builderd.api.server.limits import Limiter
from builderd.api.server.listener import BACKLOG, ProxiedProtocol, server_config, tune
from builderd.domain.errors import EngineUnavailable

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
