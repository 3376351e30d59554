"""Credentials in the store, sealed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.credentials import Credential
from builderd.domain.ids import BuilderId, TenantId


class Credentials(Protocol):
    def add(self, credential: Credential) -> None: ...
    def get(self, tenant: TenantId, name: str) -> Credential | None: ...
    def list(self, tenant: TenantId) -> Sequence[Credential]:
        """Return the tenant's credentials, sorted by name."""

    def all(self) -> Sequence[Credential]:
        """Return all tenants' credentials; a unit of work that writes locks them until it ends."""

    def save(self, credential: Credential) -> None: ...
    def touch(self, tenant: TenantId, name: str, at: datetime, by: BuilderId) -> None:
        """Record its last use; no other field is written. Does nothing if it was deleted."""

    def delete(self, tenant: TenantId, name: str) -> None:
        """Delete it. Idempotent."""
