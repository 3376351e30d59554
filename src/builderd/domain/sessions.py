"""Sessions of the web pages: signed in by an API token or by a one-time link, and ended with their token."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NewType

from builderd.domain.ids import TenantId, TokenId

SessionId = NewType("SessionId", str)

#: A session ends when it was not used for so long, and at this age in any case.
IDLE = timedelta(hours=12)
MAX_AGE = timedelta(days=30)
#: A sign-in link is valid once, and no longer than this.
LINK_SPAN = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Session:
    """A browser's session. Only the hash of its secret is stored; ``client`` says from where it was signed in."""

    id: SessionId
    tenant_id: TenantId
    token_id: TokenId
    secret_hash: str
    client: str
    created_at: datetime
    last_used_at: datetime

    def is_valid(self, now: datetime) -> bool:
        """Return True if the session is neither idle for too long nor too old, nor from a time that has not come.

        The wall clock may have been set back since its last use.
        """
        return now < min(self.last_used_at + IDLE, self.created_at + MAX_AGE) and self.last_used_at < now + IDLE


@dataclass(frozen=True, slots=True)
class SignInLink:
    """A one-time link, of which only the hash of its code is stored. It signs in with its token's scopes."""

    code_hash: str
    token_id: TokenId
    created_at: datetime
    expires_at: datetime
