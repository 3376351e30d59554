"""Disks that records name: what the engine holds beside them, nothing will ever ask for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from builderd.domain.ids import DiskId


class NamedDisks(Protocol):
    def all(self) -> Collection[DiskId]:
        """Return all disks of builders that are not deleted, of open sandboxes and restores, of backups and reports."""
