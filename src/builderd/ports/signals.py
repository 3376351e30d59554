"""Signals: a hint that something of a builder changed, so that who waits looks again at once.

A hint only: whoever waits also looks by itself from time to time, since another control plane's change
sends no hint here.
"""

from __future__ import annotations

from typing import Protocol

from builderd.domain.ids import BuilderId


class Signals(Protocol):
    def notify(self, builder: BuilderId) -> None:
        """Wake everybody who waits for this builder. Thread-safe, never blocks."""

    async def wait(self, builder: BuilderId, seen: int, timeout_seconds: float) -> int:
        """Return the builder's count of changes as soon as it differs from ``seen``, or at the timeout."""

    def count(self, builder: BuilderId) -> int:
        """How many changes were notified so far; pass it to ``wait``."""
