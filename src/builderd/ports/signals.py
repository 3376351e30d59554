"""Signals: hints inside one process, so that who waits looks again at once.

Hints only. Whoever waits also looks by itself from time to time, since another control plane on the same
database sends none here.
"""

from __future__ import annotations

from typing import Protocol

from builderd.domain.ids import BuilderId

#: To wait for a change of any builder.
ANY = BuilderId("")


class Signals(Protocol):
    """All methods but the waiting ones are thread-safe and never block."""

    def wish(self, builder: BuilderId) -> None:
        """What is wanted of it, or what it does, changed: the reconciler should look."""

    async def wishes(self, timeout_seconds: float) -> frozenset[BuilderId]:
        """Those wished since the last call, as soon as there is one; empty at the timeout. One consumer only."""

    def change(self, builder: BuilderId) -> None:
        """Its record changed: wake everybody who waits for it."""

    def count(self, builder: BuilderId) -> int:
        """How many changes were told so far, of this builder or of ``ANY``; hand it to ``wait``."""

    async def wait(self, builder: BuilderId, seen: int, timeout_seconds: float) -> None:
        """Return when the count differs from ``seen``, or at the timeout."""
