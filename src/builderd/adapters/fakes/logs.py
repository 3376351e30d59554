"""Pages of a log in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from builderd.domain.logs import LogLine, LogPage


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
