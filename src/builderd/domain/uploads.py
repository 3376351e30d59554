"""Uploads: archives of code too large for JSON, sent to a signed URL that expires."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from builderd.domain.ids import TenantId, TokenId, UploadId

LIFETIME = timedelta(hours=24)
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Upload:
    """Upload. ``size`` in bytes and ``sha256`` (64 hex characters) as announced, or None.

    ``complete`` once all bytes arrived and match the announcement. ``secret_hash`` is that of the signature in its URL.
    ``token_id`` is the API token that made it, with which it ends.
    """

    id: UploadId
    tenant_id: TenantId
    secret_hash: str
    created_at: datetime
    expires_at: datetime
    size: int | None = None
    sha256: str | None = None
    complete: bool = False
    token_id: TokenId | None = None


@dataclass(frozen=True, slots=True)
class UploadRules:
    """Limits of uploads: bytes of one, bytes and number of a tenant's unexpired ones."""

    max_bytes: int = 1_000_000_000
    max_tenant_bytes: int = 5_000_000_000
    max_count: int = 20
