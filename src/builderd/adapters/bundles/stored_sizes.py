"""Sizes of the stored bundles, read once and kept up with what this process stores and deletes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping


class StoredSizes:
    """``load`` returns the bytes of all stored bundles, by hash."""

    def __init__(self, load: Callable[[], Awaitable[Mapping[str, int]]]) -> None:
        self._load = load
        self._loading = asyncio.Lock()
        self._sizes: dict[str, int] | None = None
        self._total = 0

    async def total(self) -> int:
        """Return the bytes of all bundles together."""
        await self._known()
        return self._total

    async def of(self, bundles: Collection[str]) -> int:
        """Return the bytes of these bundles together; those that are not stored count nothing."""
        sizes = await self._known()
        return sum(sizes.get(one, 0) for one in bundles)

    def put(self, bundle: str, size: int) -> None:
        if self._sizes is not None:
            self._total += size - self._sizes.get(bundle, 0)
            self._sizes[bundle] = size

    def drop(self, bundle: str) -> None:
        if self._sizes is not None:
            self._total -= self._sizes.pop(bundle, 0)

    async def _known(self) -> Mapping[str, int]:
        async with self._loading:
            if self._sizes is None:
                self._sizes = dict(await self._load())
                self._total = sum(self._sizes.values())
        return self._sizes
