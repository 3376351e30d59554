"""SSH grants: tokens to log in to a builder. The token is the user name; no other secret is needed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from builderd.domain.ids import BuilderId, TenantId, TokenId

MIN_MINUTES, DEFAULT_MINUTES, MAX_MINUTES = 5, 60, 7 * 24 * 60
#: Most grants of one builder that are valid at the same time.
MAX_GRANTS = 20


@dataclass(frozen=True, slots=True)
class Grant:
    """Grant to log in. ``secret_hash`` is the sha256 of its token, which is not stored; ``created_by`` the actor.

    ``token_id`` is the API token that made it, with which it ends.
    """

    id: str
    tenant_id: TenantId
    builder_id: BuilderId
    secret_hash: str
    created_by: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    token_id: TokenId | None = None

    def is_valid(self, now: datetime) -> bool:
        """Return True if it is neither revoked nor expired."""
        return self.revoked_at is None and now < self.expires_at


@dataclass(frozen=True, slots=True)
class Gateway:
    """Address of the SSH gateway. ``host_key`` as in ``known_hosts``, ``fingerprint`` as ssh shows it (SHA256:…)."""

    host: str
    port: int
    host_key: str
    fingerprint: str

    def command(self, token: str) -> str:
        """Return the shell command of a login."""
        return f"ssh -p {self.port} {token}@{self.host}"

    @property
    def known_hosts(self) -> str:
        """Line of ``known_hosts`` that trusts this gateway."""
        return f"[{self.host}]:{self.port} {self.host_key}"
