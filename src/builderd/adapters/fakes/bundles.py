"""A bundle store in memory."""

from __future__ import annotations

from collections.abc import Collection

from builderd.domain.bundles import Bundle


class FakeBundles:
    def __init__(self) -> None:
        self.stored: dict[str, Bundle] = {}

    async def put(self, bundle: Bundle) -> None:
        self.stored[bundle.hash] = bundle

    async def get(self, bundle_hash: str) -> Bundle:
        return self.stored[bundle_hash]

    async def hashes(self) -> Collection[str]:
        return frozenset(self.stored)

    async def delete(self, bundle_hash: str) -> None:
        self.stored.pop(bundle_hash, None)
