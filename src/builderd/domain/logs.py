"""What an app or an installer wrote, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class LogStream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"
    #: What the installer wrote while the version's layer was made.
    BUILD = "build"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line without its line end; bytes that are not UTF-8 stand as U+FFFD."""

    time: datetime
    stream: LogStream
    text: str


class LogPage(NamedTuple):
    """Lines of a log, oldest first. ``cursor`` is where to read on, ``more`` whether something stands there already."""

    lines: Sequence[LogLine]
    cursor: str
    more: bool
