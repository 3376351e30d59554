"""One SSH session: its process, and the relay between it and the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import asyncssh
from asyncssh.constants import EXTENDED_DATA_STDERR

from builderd.core.loops import end_tasks
from builderd.engine.port import Process
from builderd.executions.model import MAX_WINDOW, Window

SFTP_VERSION = 3

Handler = Callable[[asyncssh.SSHServerProcess[bytes]], Coroutine[Any, Any, None]]


class Session(asyncssh.SSHServerProcess[bytes]):
    """A channel that passes sftp to the handler like any other program; asyncssh would serve files of the host.

    ``on_end`` is called once: when the channel is closed and its handler, where it had one, has returned.
    """

    def __init__(self, handler: Handler, on_end: Callable[[], None]) -> None:
        super().__init__(handler, None, SFTP_VERSION, False)
        self._on_end = on_end
        self._handling: asyncio.Task[None] | None = None

    def subsystem_requested(self, subsystem: str) -> bool:
        return subsystem == "sftp"

    def session_started(self) -> None:
        channel, connection = self._chan, self._conn
        assert channel is not None
        assert connection is not None
        reader = asyncssh.SSHReader[bytes](self, channel)
        output, errors = (
            asyncssh.SSHWriter[bytes](self, channel, datatype) for datatype in (None, EXTENDED_DATA_STDERR)
        )
        handling = self._start_process(reader, output, errors)
        assert handling is not None
        self._handling = connection.create_task(handling, reader.logger)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._handling is None:
            self._on_end()
        else:
            self._handling.add_done_callback(lambda _: self._on_end())


_PROGRAM = """
import os, socket, sys, threading
if sys.argv[1] == "port":
    peer = socket.create_connection(("localhost", int(sys.argv[2])), 10)
else:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(10)
    peer.connect(sys.argv[2])
peer.settimeout(None)
def pour():
    while piece := os.read(0, 65536):
        peer.sendall(piece)
    peer.shutdown(socket.SHUT_WR)
threading.Thread(target=pour, daemon=True).start()
while piece := peer.recv(65536):
    view = memoryview(piece)
    while view:
        view = view[os.write(1, view):]
"""

_PYTHON = ("/usr/bin/python3", "-I", "-c", _PROGRAM)

#: Host names by which a client may forward to the sandbox itself.
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "ip6-localhost"})  # noqa: S104 -- a name, not an address


def relay_to_port(port: int) -> tuple[str, ...]:
    """Return the argv of a program that copies between its stdin and stdout and this port of the sandbox."""
    return (*_PYTHON, "port", str(port))


def relay_to_socket(path: str) -> tuple[str, ...]:
    """Return the argv of a program that copies between its stdin and stdout and a Unix socket of the sandbox."""
    return (*_PYTHON, "socket", path)


CHUNK_BYTES = 64 * 1024
#: Signals that a client may send to end what it started.
ENDING = frozenset({"HUP", "INT", "TERM", "KILL", "QUIT"})


async def join(channel: asyncssh.SSHServerProcess[bytes], process: Process) -> int | None:
    """Copy both directions until the process ends. Return its exit code, or None when the client left first."""
    ending = asyncio.ensure_future(_copy_until_exit(channel, process))
    await _until_first(ending, _feed(channel, process), channel.channel.wait_closed())
    return ending.result() if not ending.cancelled() and not ending.exception() else None


async def forward(reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes], process: Process) -> None:
    """Copy both directions of a forwarded connection until the relay process or the client ends it."""
    copying = asyncio.ensure_future(_copy(process.read, writer))
    try:
        await _until_first(copying, _copy_input(reader, process), writer.channel.wait_closed())
    finally:
        writer.close()


async def _until_first(
    output: asyncio.Future[Any], feeding: Coroutine[Any, Any, None], closing: Coroutine[Any, Any, None]
) -> None:
    """Wait until the output has ended or the client has closed the channel; cancel the rest."""
    fed, closed = asyncio.ensure_future(feeding), asyncio.ensure_future(closing)
    try:
        await asyncio.wait({output, closed}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_tasks(fed, output, closed)


async def _copy_until_exit(channel: asyncssh.SSHServerProcess[bytes], process: Process) -> int:
    """Return the exit code once all output is copied."""
    outputs = [_copy(process.read, channel.stdout)]
    if channel.term_type is None:
        outputs.append(_copy(process.read_errors, channel.stderr))
    await asyncio.gather(*outputs)
    return await process.wait()


async def _copy(read: Callable[[], Awaitable[bytes]], writer: asyncssh.SSHWriter[bytes]) -> None:
    while piece := await read():
        writer.write(piece)
        await writer.drain()


async def _feed(channel: asyncssh.SSHServerProcess[bytes], process: Process) -> None:
    """Copy the client's input, window sizes and signals to the process."""
    while True:
        try:
            return await _copy_input(channel.stdin, process)
        except asyncssh.TerminalSizeChanged as change:
            process.resize(Window(min(change.width, MAX_WINDOW), min(change.height, MAX_WINDOW)))
        except asyncssh.BreakReceived:
            continue
        except asyncssh.SignalReceived as received:
            if received.signal in ENDING:
                await process.kill()


async def _copy_input(reader: asyncssh.SSHReader[bytes], process: Process) -> None:
    while piece := await reader.read(CHUNK_BYTES):
        await process.write(piece)
    process.close_input()
