"""Logs in memory, and their pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from tests.fakes.layers import FakeCalls

from builderd.core.ids import BuilderId, SandboxId
from builderd.sandboxes.model import LogLine, LogMatch, LogPage, LogPiece, LogStream


class FakeLogs(FakeCalls):
    """Lines that apps wrote, each sandbox's with its builder."""

    _now: Callable[[], datetime]

    def __init__(self) -> None:
        super().__init__()
        self.known_logs: dict[SandboxId, tuple[BuilderId, list[LogLine]]] = {}

    def print(self, sandbox: SandboxId, *lines: str, stream: LogStream = LogStream.STDOUT) -> None:
        """Let the app write lines into its log."""
        self.known_logs[sandbox][1].extend(LogLine(self._now(), stream, line) for line in lines)

    async def read_log(
        self,
        sandbox: SandboxId,
        cursor: str = "",
        *,
        tail: int | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> LogPage:
        self._called("read_log", sandbox)
        lines = self.known_logs[sandbox][1] if sandbox in self.known_logs else []
        return page_of(lines, cursor, tail, since, limit)

    async def search_log(self, sandbox: SandboxId, match: LogMatch, before: str = "", *, count: int) -> LogPiece:
        self._called("search_log", sandbox)
        return piece_of(self.known_logs[sandbox][1] if sandbox in self.known_logs else [], match, before, count)

    async def delete_logs(self, builder: BuilderId) -> None:
        self._called("delete_logs", builder)
        self.known_logs = {sandbox: log for sandbox, log in self.known_logs.items() if log[0] != builder}


def page_of(
    lines: Sequence[LogLine], cursor: str, tail: int | None, since: datetime | None, limit: int | None
) -> LogPage:
    """Return the lines that ``Engine.read_log`` would return of these; the cursor is a line's number."""
    start, end = int(cursor or 0), len(lines)
    if since is not None:
        start = max(start, next((number for number, line in enumerate(lines) if line.time >= since), end))
    if tail is not None:
        start = max(start, end - tail)
    if limit is not None:
        end = min(start + limit, end)
    return LogPage(lines[start:end], str(end) if lines else cursor, end < len(lines))


def piece_of(lines: Sequence[LogLine], match: LogMatch, before: str, count: int) -> LogPiece:
    """Return the lines that ``Engine.search_log`` would return of these."""
    end = int(before) if before else len(lines)
    begin = max(end - count, 0)
    found = [line for line in lines[begin:end] if match.passes(line)]
    return LogPiece(found, str(begin) if begin else "", str(end) if lines else "", begin > 0)
