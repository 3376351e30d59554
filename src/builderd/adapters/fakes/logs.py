"""Pages of a log in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from builderd.domain.logs import LogLine, LogMatch, LogPage, LogPiece


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
