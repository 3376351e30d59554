"""API tokens: a tenant's credentials for the API, with scopes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from builderd.domain.ids import TenantId, TokenId

#: Characters of a token's name.
MAX_NAME = 100
#: A tenant's valid tokens, beyond which the API makes none.
MAX_VALID_TOKENS = 100


class Scope(StrEnum):
    #: Read everything of the tenant except service tokens.
    READ = "read"
    #: Create and change builders; includes ``read``.
    WRITE = "write"
    #: Leave the review or QA gate out.
    SKIP_GATES = "skip-gates"
    #: The tenant's tokens, caps and overrides; includes all others of the tenant.
    ADMIN = "admin"
    #: See the machine and all tenants on the web pages. Granted on the machine's command line only, implied by none.
    OPERATOR = "operator"


IMPLIED: dict[Scope, frozenset[Scope]] = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.WRITE: frozenset({Scope.READ, Scope.WRITE}),
    Scope.SKIP_GATES: frozenset({Scope.SKIP_GATES}),
    Scope.ADMIN: frozenset(Scope) - {Scope.OPERATOR},
    Scope.OPERATOR: frozenset({Scope.OPERATOR}),
}


@dataclass(frozen=True, slots=True)
class Token:
    """``secret_hash`` is the sha256 of the secret; the secret itself is never stored."""

    id: TokenId
    tenant_id: TenantId
    name: str
    secret_hash: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    def allows(self, scope: Scope) -> bool:
        """Return True if one of the token's scopes is, or includes, this one."""
        return any(scope in IMPLIED[held] for held in self.scopes)

    def is_valid(self, now: datetime) -> bool:
        """Return True if the token is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)
