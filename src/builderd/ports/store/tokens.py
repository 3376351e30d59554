"""API tokens in the store."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.ids import TenantId, TokenId
from builderd.domain.tokens import NO_CALLS, CallHours, Token


class Tokens(Protocol):
    def add(self, token: Token) -> None: ...
    def get(self, token: TokenId, *, lock: bool = False) -> Token | None:
        """Return it; with ``lock``, other writers of this row wait until the unit of work ends."""

    def by_secret_hash(self, secret_hash: str) -> Token | None: ...
    def list(self, tenant: TenantId) -> Sequence[Token]: ...
    def touch(self, token: TokenId, at: datetime, calls: CallHours = NO_CALLS) -> None:
        """Record the time of the last use, and add calls to those of their hours."""

    def revoke(self, tokens: Collection[TokenId], at: datetime) -> None:
        """Mark them as revoked. Those that are revoked already keep their time."""
