"""One channel of a login, led to a program in the sandbox whatever it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import asyncssh
from asyncssh.constants import EXTENDED_DATA_STDERR

SFTP_VERSION = 3

Handler = Callable[[asyncssh.SSHServerProcess[bytes]], Coroutine[Any, Any, None]]


class Session(asyncssh.SSHServerProcess[bytes]):
    """Hands sftp to the handler like any other program; asyncssh would serve it itself, from the host's files.

    ``over`` is called once: when the channel is closed and its handler, where it had one, has come to its end.
    """

    def __init__(self, handler: Handler, over: Callable[[], None]) -> None:
        super().__init__(handler, None, SFTP_VERSION, False)
        self._over = over
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
            self._over()
        else:
            self._handling.add_done_callback(lambda _: self._over())
