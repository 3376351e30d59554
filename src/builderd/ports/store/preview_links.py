"""Preview links in the store. One that is revoked is deleted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Protocol

from builderd.domain.ids import BuilderId, TokenId
from builderd.domain.preview_links import Link
from builderd.domain.previews import PreviewLink


class PreviewLinks(Protocol):
    def add(self, link: Link) -> None: ...
    def valid_of(self, builder: BuilderId, now: datetime) -> Sequence[Link]:
        """Return those that have not expired, oldest first."""

    def remove(self, link_id: str) -> None: ...
    def remove_of(self, tokens: Collection[TokenId], now: datetime) -> Sequence[Link]:
        """Remove the valid ones that these API tokens made; return them."""

    def routes(self, now: datetime) -> Sequence[PreviewLink]:
        """Return all valid links to builders that are not deleted, as the proxy needs them."""

    def expire(self, before: datetime) -> int:
        """Delete those that expired before this time; return the number."""
