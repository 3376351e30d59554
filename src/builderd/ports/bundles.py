"""The bundle store: files of versions under their hash."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from builderd.domain.bundles import Alteration, ArchiveLimits, Bundle


@dataclass(frozen=True, slots=True)
class BundleSpace:
    """Bytes that stored bundles take, and that are free for more. ``remedy``: how the operator gets more of it."""

    used: int
    free: int
    remedy: str

    @property
    def is_nearly_full(self) -> bool:
        """True when a fifth of the space or less is left."""
        return self.used >= 0.8 * (self.used + max(self.free, 0))


class Bundles(Protocol):
    def exclusive(self) -> AbstractAsyncContextManager[object]:
        """Hold the store for this caller: while a bundle is referred to, or an unused one is removed."""

    def pinned(self, bundle_hash: str) -> AbstractContextManager[None]:
        """Keep ``delete`` from removing the bundle in the block: while it is stored, until it is referred to."""

    async def put(self, bundle: Bundle) -> None:
        """Store the bundle whole or not at all. Idempotent."""

    async def unpack(self, archive: BinaryIO, limits: ArchiveLimits) -> Bundle:
        """Store the contents of an archive (zip, tar, tar.gz or tar.zst), whole or not at all.

        ``archive`` is a file with a descriptor of its own. Nothing in it is trusted. Raises ``ValidationFailed`` or
        ``TooLarge`` with the name of the entry at fault, and ``NoCapacity`` when there is no room for it.
        """

    async def alter(self, bundle_hash: str, alteration: Alteration, limits: ArchiveLimits) -> Bundle:
        """Store what an alteration makes of a stored bundle, whole or not at all.

        Added paths keep the rules of an archive's names. Raises ``KeyError`` when no bundle has this hash,
        ``ValidationFailed`` for an alteration that does not fit it or has another ``result``, ``TooLarge`` for more
        files, bytes, or bytes of names than the limits.
        """

    async def get(self, bundle_hash: str) -> Bundle:
        """Return the bundle; the contents of a large one are read on demand.

        Raises ``KeyError`` when no bundle has this hash.
        """

    async def hashes(self) -> Collection[str]:
        """Return the hashes of all stored bundles."""

    async def space(self) -> BundleSpace:
        """Return the space of all bundles."""

    async def stored_bytes(self, bundles: Collection[str]) -> int:
        """Return the bytes of these bundles together; those that are not stored count nothing."""

    async def delete(self, bundle_hash: str) -> None:
        """Delete the bundle, unless it is pinned. Idempotent."""
