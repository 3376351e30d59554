"""Scratch sandboxes: run for a report or a drill, in no row of the database; the sweep leaves them alone."""

from __future__ import annotations

from builderd.domain.ids import SandboxId


class ScratchSandboxes:
    """Scratch sandboxes of this process. Those of an earlier process are swept away."""

    def __init__(self) -> None:
        self._running: set[SandboxId] = set()

    def add(self, sandbox: SandboxId) -> None:
        """Add it before it is started."""
        self._running.add(sandbox)

    def discard(self, sandbox: SandboxId) -> None:
        """Discard it after it is removed. Idempotent."""
        self._running.discard(sandbox)

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, sandbox: SandboxId) -> bool:
        return sandbox in self._running
