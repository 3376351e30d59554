"""API tokens in the store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.ids import TenantId, TokenId
from builderd.domain.tokens import NO_CALLS, CallHours, Token


class Tokens(Protocol):
    def add(self, token: Token) -> None: ...
    def get(self, token: TokenId) -> Token | None: ...
    def by_secret_hash(self, secret_hash: str) -> Token | None: ...
    def list(self, tenant: TenantId) -> Sequence[Token]: ...
    def touch(self, token: TokenId, at: datetime, calls: CallHours = NO_CALLS) -> None:
        """Record the time of the last use, and add calls to those of their hours."""

    def revoke(self, token: TokenId, at: datetime) -> None: ...
