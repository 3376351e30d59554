"""The bundle store: files of versions under their hash."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from builderd.domain.bundles import Bundle


class Bundles(Protocol):
    async def put(self, bundle: Bundle) -> None:
        """Store it whole or not at all. Idempotent."""

    async def get(self, bundle_hash: str) -> Bundle:
        """The bundle with its contents. Raises ``KeyError`` when there is none of this hash."""

    async def hashes(self) -> Collection[str]:
        """Of all that are stored."""

    async def delete(self, bundle_hash: str) -> None:
        """Idempotent."""
