"""Retry keys in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from builderd.domain.ids import BuilderId, TenantId


@dataclass(frozen=True, slots=True)
class IdempotencyRecord:
    """A retry key of a tenant. ``status`` is None until the first call was answered.

    ``version`` is the number of the version that the call deploys. ``owner`` is the instance that works on the first
    call; ``body_hash`` the sha256 of method, path and body.
    """

    tenant_id: TenantId
    key: str
    body_hash: str
    owner: str
    created_at: datetime
    builder_id: BuilderId | None = None
    version: int | None = None
    status: int | None = None
    headers: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None


class Idempotency(Protocol):
    def get(self, tenant: TenantId, key: str) -> IdempotencyRecord | None: ...
    def add(self, record: IdempotencyRecord) -> None:
        """Add it. Raises ``Conflict`` if the tenant has used the key before."""

    def save(self, record: IdempotencyRecord) -> None: ...
    def delete(self, tenant: TenantId, key: str) -> None: ...
    def expire(self, before: datetime) -> int:
        """Delete records created before this time; return the number."""
