"""The streams of a process beside an app: ends of pipes, or a terminal, in the event loop.

Nothing is read ahead: a process whose output is not read blocks, as in a pipeline.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builderd.executions.model import Window

PIPE_BYTES = 1 << 20
_PIECE_BYTES = 1 << 18
#: Bytes read after the process has ended: more than its streams have room for.
_LAST_BYTES = 2 * PIPE_BYTES


class _Stream:
    """End of a pipe or a terminal. ``ended`` is set once the process itself writes and reads no more."""

    def __init__(self, descriptor: int, ended: asyncio.Future[Any]) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._ended = ended
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._unwatch()
            os.close(self._descriptor)

    def _watch(self, call: Callable[[], None]) -> None:
        raise NotImplementedError

    def _unwatch(self) -> None:
        raise NotImplementedError

    async def _wait(self) -> None:
        await _until(self._watch, lambda: None if self._closed else self._unwatch(), self._ended)


class Outlet(_Stream):
    """Output of a process, read from a descriptor."""

    _left = _LAST_BYTES

    async def read(self) -> bytes:
        """Return the next piece; empty at the end. Yields to other tasks first, so that a flood blocks none of them."""
        await asyncio.sleep(0)
        while not self._closed:
            ended = self._ended.done()
            piece = self._take()
            if piece is not None:
                self._left -= len(piece) * ended
                return piece if self._left > 0 else b""
            if ended:
                return b""
            await self._wait()
        return b""

    def _take(self) -> bytes | None:
        """Read without waiting; None when there is nothing now."""
        try:
            return os.read(self._descriptor, _PIECE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""  # the terminal's other side was closed

    def _watch(self, call: Callable[[], None]) -> None:
        asyncio.get_running_loop().add_reader(self._descriptor, call)

    def _unwatch(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)


class Inlet(_Stream):
    """Input of a process, written to a descriptor."""

    async def write(self, data: bytes) -> None:
        """Write all of it; discard it when the reader is gone."""
        rest = memoryview(data)
        while rest and not self._closed and not self._ended.done():
            try:
                rest = rest[os.write(self._descriptor, rest[:PIPE_BYTES]) :]
            except BlockingIOError:
                await self._wait()
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    raise
                return

    def _watch(self, call: Callable[[], None]) -> None:
        asyncio.get_running_loop().add_writer(self._descriptor, call)

    def _unwatch(self) -> None:
        asyncio.get_running_loop().remove_writer(self._descriptor)


async def _until(
    watch: Callable[[Callable[[], None]], None], unwatch: Callable[[], object], ended: asyncio.Future[Any]
) -> None:
    """Wait until the descriptor can be used, or the process has ended."""
    ready = asyncio.Event()

    def wake(_: object = None) -> None:
        ready.set()

    ended.add_done_callback(wake)
    watch(wake)
    try:
        await ready.wait()
    finally:
        unwatch()
        ended.remove_done_callback(wake)


@dataclass(frozen=True, slots=True)
class Ends:
    """Our ends of a process's streams, and the other ends by the process's descriptor numbers."""

    write: int
    read: int
    errors: int | None
    given: dict[int, int]


def open_pipes(*, joined: bool) -> Ends:
    """Open pipes for input, output and, unless joined, errors."""
    stdin, write = os.pipe2(os.O_CLOEXEC)
    read, stdout = _wide_pipe()
    if joined:
        return Ends(write, read, None, {0: stdin, 1: stdout, 2: stdout})
    errors, stderr = _wide_pipe()
    return Ends(write, read, errors, {0: stdin, 1: stdout, 2: stderr})


def _wide_pipe() -> tuple[int, int]:
    read, write = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return read, write


def open_terminal(window: Window) -> Ends:
    """Open a terminal of this size; return our two descriptors, one for each direction."""
    ours, theirs = os.openpty()
    resize(ours, window)
    return Ends(duplicate(ours), ours, None, {0: theirs, 1: theirs, 2: theirs})


def duplicate(descriptor: int) -> int:
    """Duplicate a descriptor, to be closed and watched independently."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)


class Console:
    """Socket over which a runtime passes the terminal of a process: runtime-spec, "console socket"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listener.bind(str(path))
        self._listener.listen(1)

    async def receive(self, window: Window, ended: asyncio.Future[Any]) -> int | None:
        """Return the terminal, resized; None when the runtime ended without passing one."""
        connection = await self._accept(ended)
        if connection is None:
            return None
        with connection:
            loop = asyncio.get_running_loop()
            await _until(lambda call: loop.add_reader(connection, call), lambda: loop.remove_reader(connection), ended)
            _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        for terminal in descriptors:
            os.set_inheritable(terminal, False)
            resize(terminal, window)
        return descriptors[0] if descriptors else None

    async def _accept(self, ended: asyncio.Future[Any]) -> socket.socket | None:
        """Accept a connection; the listener may be closed once this returns."""
        accepting = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(self._listener))
        try:
            await asyncio.wait({accepting, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            accepting.cancel()
            await asyncio.wait({accepting})
        return None if accepting.cancelled() else accepting.result()[0]

    def close(self) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)


def resize(terminal: int, window: Window) -> None:
    """Resize a terminal (ioctl_tty(2)); the kernel sends SIGWINCH to the foreground process."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", window.rows, window.columns, 0, 0))
