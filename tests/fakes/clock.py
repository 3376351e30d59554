"""A clock that a test moves."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

#: Seconds, as of the system's clock.
HELD_STEP, HOLD = 3600, 86_400


class FakeClock:
    """Clock that only ``move`` and ``sleep`` advance. ``sleep`` takes no real time and lets other tasks run."""

    def __init__(self, start: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._now = start
        self._held: list[tuple[float, timedelta]] = []
        self._set_back = timedelta()
        self._passed = 0.0
        self._fault = ""

    def now(self) -> datetime:
        return self._now

    def deletable(self) -> datetime:
        held = sum((size for until, size in self._held if until > self._passed), timedelta())
        return self._now - self._set_back - held

    def passed(self) -> float:
        return self._passed

    async def sleep(self, seconds: float) -> None:
        self.move(seconds)
        await asyncio.sleep(0)

    def jump(self, seconds: float) -> None:
        """Follow a wall clock that was set forward by ``seconds``."""
        self._now += timedelta(seconds=seconds)
        if seconds > HELD_STEP:
            self._held.append((self._passed + HOLD, timedelta(seconds=seconds)))

    def set_back(self, seconds: float) -> None:
        """Set the wall clock back; ``now`` stays."""
        self._set_back += timedelta(seconds=seconds)

    def fault(self) -> str:
        return self._fault

    def fail(self, fault: str) -> None:
        """Report this from now on."""
        self._fault = fault

    def move(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self._passed += seconds
        self._now += timedelta(seconds=seconds)
