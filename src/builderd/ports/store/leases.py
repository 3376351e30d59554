"""Leases in the store, by which callers keep builders awake."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.ids import BuilderId
from builderd.domain.leases import Lease, LeaseId


class Leases(Protocol):
    def add(self, lease: Lease) -> None: ...
    def save(self, lease: Lease) -> None: ...
    def of_builder(self, builder: BuilderId) -> Sequence[Lease]:
        """Return all leases, oldest first, expired ones included until they are deleted."""

    def active(self, builder: BuilderId, now: datetime) -> Sequence[Lease]:
        """Return the leases that have not expired, oldest first."""

    def expire(self, builder: BuilderId, now: datetime) -> None:
        """Delete the builder's expired leases."""

    def delete(self, lease: LeaseId) -> None:
        """Delete it. Idempotent."""

    def delete_of(self, builder: BuilderId) -> None:
        """Delete all leases of the builder."""
