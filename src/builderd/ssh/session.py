"""Session channels of a login: shell, command and sftp all run as a program in the sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import asyncssh
from asyncssh.constants import EXTENDED_DATA_STDERR

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
