"""Sandboxes in the store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.sandboxes import Sandbox


class Sandboxes(Protocol):
    def add(self, sandbox: Sandbox) -> None: ...
    def get(self, sandbox: SandboxId) -> Sandbox | None: ...
    def save(self, sandbox: Sandbox) -> None: ...
    def open_of(self, builder: BuilderId) -> Sandbox | None:
        """Return the one that has not ended, at most one, without trials."""

    def open_of_all(self, builders: Sequence[BuilderId]) -> Sequence[Sandbox]:
        """Return those of these builders that have not ended, without trials."""

    def list(self, builder: BuilderId) -> Sequence[Sandbox]:
        """Return all sandboxes, oldest first."""

    def of_generation(self, builder: BuilderId, generation: int) -> Sequence[Sandbox]:
        """Return those of one generation, oldest first."""

    def open_or_of_generation(self, builder: BuilderId, generation: int) -> Sequence[Sandbox]:
        """Return those of one generation and those of others that have not ended, trials included."""

    def expire(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` that ended before this time, none of the present generation; return the number."""

    def delete_oldest(self, keep: int, limit: int) -> int:
        """Delete up to ``limit`` ended ones of each generation that has more than ``keep``; return the number.

        The latest ``keep`` of it stay, and the last one that listened."""
