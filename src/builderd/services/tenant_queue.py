"""Queues of tenants: a few calls of each tenant work at a time, and its others wait in order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from builderd.domain.errors import RateLimited
from builderd.domain.ids import TenantId

#: Calls of one tenant that may wait in one queue.
MAX_WAITING = 100


class TenantQueue:
    """``places`` calls of each tenant work at a time. ``what``: plural name of the calls, for the error."""

    def __init__(self, places: int, what: str) -> None:
        self._places = places
        self._what = what
        self._semaphores: WeakValueDictionary[TenantId, asyncio.Semaphore] = WeakValueDictionary()
        self._calls: Counter[TenantId] = Counter()

    @asynccontextmanager
    async def admitted(self, tenant_id: TenantId) -> AsyncIterator[asyncio.Semaphore]:
        """Count one call, and return the tenant's semaphore. Raises ``RateLimited`` when too many wait already."""
        most = self._places + MAX_WAITING
        if self._calls[tenant_id] >= most:
            raise RateLimited(
                f"{most} {self._what} of yours are going on or waiting already: ask again when some are answered.",
                retry_after=5,
            )
        self._calls[tenant_id] += 1
        try:
            yield self.semaphore(tenant_id)
        finally:
            self._calls[tenant_id] -= 1
            if not self._calls[tenant_id]:
                del self._calls[tenant_id]

    @asynccontextmanager
    async def one(self, tenant_id: TenantId) -> AsyncIterator[None]:
        """Work in one of the tenant's places, once it is free. Raises ``RateLimited`` when too many wait already."""
        async with self.admitted(tenant_id) as semaphore, semaphore:
            yield

    def semaphore(self, tenant_id: TenantId) -> asyncio.Semaphore:
        """Return the tenant's semaphore, for calls that are counted elsewhere."""
        semaphore = self._semaphores.get(tenant_id)
        if semaphore is None:
            semaphore = self._semaphores[tenant_id] = asyncio.Semaphore(self._places)
        return semaphore


async def releasing(content: AsyncIterator[bytes], semaphore: asyncio.Semaphore) -> AsyncGenerator[bytes]:
    """Yield the pieces; the caller's place is free for others while the next piece has not arrived."""
    while True:
        semaphore.release()
        try:
            piece = await anext(content, None)
        finally:
            await semaphore.acquire()
        if piece is None:
            return
        yield piece
