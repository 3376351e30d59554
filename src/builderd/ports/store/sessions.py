"""Sessions of the web pages and their one-time links in the store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.ids import TokenId
from builderd.domain.sessions import Session, SessionId, SignInLink


class Sessions(Protocol):
    def add(self, session: Session) -> None: ...
    def by_secret_hash(self, secret_hash: str) -> Session | None: ...
    def of_token(self, token: TokenId) -> Sequence[Session]:
        """Return the token's sessions, the last used first."""

    def touch(self, session: SessionId, at: datetime) -> None:
        """Record the time of the last use."""

    def remove(self, session: SessionId) -> None: ...
    def remove_of(self, token: TokenId) -> int:
        """Remove all sessions of the token; return the number."""

    def expire(self, used_before: datetime) -> int:
        """Delete those last used before this time; return the number."""


class SignInLinks(Protocol):
    def add(self, link: SignInLink) -> None: ...
    def get(self, code_hash: str) -> SignInLink | None: ...
    def spend(self, code_hash: str) -> bool:
        """Delete the link; return False if it was gone already. Of several callers at once one gets True."""

    def expire(self, before: datetime) -> int:
        """Delete those that expired before this time; return the number."""
