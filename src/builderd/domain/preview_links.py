"""Preview links: URLs that open a private preview, or one of its ports, for a time and without the service token."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from builderd.domain.ids import BuilderId, TenantId, TokenId

MIN_MINUTES, DEFAULT_MINUTES, MAX_MINUTES = 1, 60, 30 * 24 * 60
#: Most links of one builder that are valid at the same time.
MAX_LINKS = 20


@dataclass(frozen=True, slots=True)
class Link:
    """Link to a preview; ``port`` None: to the builder's own port.

    ``secret_hash`` is the sha256 of its token, which is not stored; ``created_by`` the actor. ``token_id`` is the API
    token that made it, with which it ends.
    """

    id: str
    tenant_id: TenantId
    builder_id: BuilderId
    secret_hash: str
    port: int | None
    created_by: str
    created_at: datetime
    expires_at: datetime
    token_id: TokenId | None = None
