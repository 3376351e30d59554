"""What an app or an installer wrote, line by line."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


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
