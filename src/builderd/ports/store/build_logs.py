"""Build logs in the store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.ids import BuilderId
from builderd.domain.logs import LogLine


class BuildLogs(Protocol):
    def add(self, builder: BuilderId, version: int, lines: Sequence[LogLine]) -> None: ...
    def before_last(self, builder: BuilderId, count: int | None, since: datetime | None = None) -> tuple[int, int]:
        """Return the id before the last ``count`` lines (None: all) since ``since``, and the number of them."""

    def following(self, builder: BuilderId, after: int, limit: int) -> Sequence[tuple[int, int, LogLine]]:
        """Return (id, version, line), oldest first, up to ``limit`` with an id greater than ``after``."""

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` of the oldest lines from before this time; return the number."""

    def delete(self, builder: BuilderId) -> None: ...
