"""Signals: hints inside one process that a builder changed, so that waiters read it again at once.

A hint may be missing: another control plane on the same database sends none here. So every waiter also polls.
"""

from __future__ import annotations

from typing import Protocol

from builderd.domain.ids import BuilderId

#: To wait for a change of any builder.
ANY = BuilderId("")


def outcome_of(builder: BuilderId) -> BuilderId:
    """Return what to wait for instead of the builder if steps on the way to its outcome do not matter."""
    return BuilderId(f"{builder}/outcome")


class Signals(Protocol):
    """All methods but the waiting ones are thread-safe and never block."""

    def desired_changed(self, builder: BuilderId) -> None:
        """Have the reconciler observe the builder: its desired state, or what it does, changed."""

    async def desired_changes(self, timeout_seconds: float) -> frozenset[BuilderId]:
        """Return the builders of ``desired_changed`` since the last call, as soon as there is one.

        Empty at the timeout. One consumer only: the reconciler.
        """

    def change(self, builder: BuilderId) -> None:
        """Wake everybody who waits for the builder: its record changed, or its outcome."""

    def progress(self, builder: BuilderId) -> None:
        """Wake those who follow the builder step by step; not those who wait at ``outcome_of`` it."""

    def count(self, builder: BuilderId) -> int:
        """Return what grows with each change of this builder, of ``ANY`` or at ``outcome_of``; pass it to ``wait``.

        It may grow without one: who waits looks again anyway.
        """

    async def wait(self, builder: BuilderId, seen: int, timeout_seconds: float) -> None:
        """Return when the count differs from ``seen``, or at the timeout."""
