"""SSH grants in the store."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.ids import BuilderId, TokenId
from builderd.domain.ssh import Grant


class SshGrants(Protocol):
    def add(self, grant: Grant) -> None: ...
    def get(self, grant_id: str) -> Grant | None: ...
    def by_secret_hash(self, secret_hash: str) -> Grant | None: ...
    def valid_of(self, builder: BuilderId, now: datetime) -> Sequence[Grant]:
        """Return those that are neither revoked nor expired, oldest first."""

    def touch(self, grant_id: str, at: datetime) -> None:
        """Record the time of the last use."""

    def revoke(self, grant_id: str, at: datetime) -> None: ...
    def revoke_of(self, tokens: Collection[TokenId], at: datetime) -> Sequence[Grant]:
        """Revoke the valid ones that these API tokens made; return them."""

    def expire(self, before: datetime) -> int:
        """Delete those that expired before this time; return the number."""
