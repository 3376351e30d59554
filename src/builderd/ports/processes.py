"""A process beside an app, with streams in both directions, wherever it runs."""

from __future__ import annotations

from typing import Protocol

from builderd.domain.processes import Window


class Process(Protocol):
    """One at most reads each stream at a time. Nothing is lost and little is held: who does not read stops it."""

    async def read(self) -> bytes:
        """The next piece of its output, of both streams where they are joined or it has a terminal.

        Empty once it has ended and what it had written was read. What its background processes write later is nobody's.
        """

    async def read_errors(self) -> bytes:
        """The same of its second stream; empty at once where there is none."""

    async def write(self, data: bytes) -> None:
        """Hand all of this to its input; returns when it went in. Passed over once nobody can read it any more."""

    def close_input(self) -> None:
        """Let it read the end of its input; on a terminal that is the character for it, ^D. Idempotent."""

    def resize(self, window: Window) -> None:
        """Its terminal has another size now. Without a terminal nothing happens."""

    async def wait(self) -> int:
        """Its exit code, 128 more than a signal's number."""

    async def kill(self) -> None:
        """Kill it and every process that it ever started, daemons among them. Idempotent."""
