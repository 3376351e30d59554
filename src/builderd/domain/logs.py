"""Log lines of apps and installers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class LogStream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"
    #: Output of the installer that made the version's layer.
    BUILD = "build"
    #: Output of the version's release command.
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line without its line end; bytes that are not UTF-8 stand as U+FFFD."""

    time: datetime
    stream: LogStream
    text: str


@dataclass(frozen=True, slots=True)
class LogMatch:
    """Condition on a line: from ``since`` on, of one ``stream`` or of all, with ``search`` in any case of letters."""

    since: datetime | None = None
    stream: LogStream | None = None
    search: str = ""

    def passes(self, line: LogLine) -> bool:
        if self.search and self.search.casefold() not in line.text.casefold():
            return False
        return (self.since is None or line.time >= self.since) and self.stream in (None, line.stream)


class LogPiece(NamedTuple):
    """Lines of a piece of a log that match, oldest first, between two cursors; ``more``: earlier pieces exist."""

    lines: Sequence[LogLine]
    begin: str
    end: str
    more: bool


class LogPage(NamedTuple):
    """Lines of a log, oldest first. ``cursor`` is the position to read on from, ``more`` True if lines follow."""

    lines: Sequence[LogLine]
    cursor: str
    more: bool
