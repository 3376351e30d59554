"""The clock."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The time in UTC, timezone-aware, with microseconds."""

    async def sleep(self, seconds: float) -> None:
        """Let this much time pass."""
