"""Uploads in the store; their bytes are in ``ports.uploads``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.ids import TenantId, UploadId
from builderd.domain.uploads import Upload


class Uploads(Protocol):
    def add(self, upload: Upload) -> None: ...
    def get(self, upload: UploadId) -> Upload | None: ...
    def save(self, upload: Upload) -> bool:
        """Save it; return False, and save nothing, if it was deleted."""

    def of_tenant(self, tenant: TenantId) -> Sequence[Upload]:
        """Return the tenant's uploads, oldest first, expired ones included until they are deleted."""

    def live(self, now: datetime) -> Sequence[UploadId]:
        """Return all tenants' uploads that have not expired."""

    def expired(self, now: datetime) -> Sequence[UploadId]:
        """Return all tenants' expired uploads."""

    def delete(self, upload: UploadId) -> None:
        """Delete it. Idempotent."""
