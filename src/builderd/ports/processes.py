"""A process beside an app, with streams in both directions, wherever it runs."""

from __future__ import annotations

from typing import Protocol

from builderd.domain.processes import Window


class Process(Protocol):
    """A running process and its streams. Each stream has at most one reader at a time.

    No output is lost and little is buffered: a reader that stops reading blocks the process.
    """

    async def read(self) -> bytes:
        """Return the next piece of its output, of both streams where they are joined or it has a terminal.

        Empty once it has ended and all its output was read. Later output of its background processes is dropped.
        """

    async def read_errors(self) -> bytes:
        """Return the next piece of its standard error, empty at its end; empty at once where it has no such stream."""

    async def write(self, data: bytes) -> None:
        """Write all of this to its input; return when it was taken. Ignored once no process can read it any more."""

    def close_input(self) -> None:
        """Close its input; on a terminal, send the end-of-file character, ^D. Idempotent."""

    def resize(self, window: Window) -> None:
        """Set the size of its terminal. Without a terminal nothing happens."""

    async def wait(self) -> int:
        """Wait until it ends and return its exit code; 128 plus the number of a signal that ended it."""

    async def kill(self) -> None:
        """Kill it and every process that it ever started, daemons among them. Idempotent."""
