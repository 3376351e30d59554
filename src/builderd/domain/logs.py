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


class LogPage(NamedTuple):
    """Lines of a log, oldest first. ``cursor`` is the position to read on from, ``more`` True if lines follow."""

    lines: Sequence[LogLine]
    cursor: str
    more: bool
