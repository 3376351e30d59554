"""Queues of tenants: a few calls of each tenant work at a time, and its others wait in order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
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


#: Followers of one tenant that poll as often as they can. With more of them, all together poll no more often.
AT_FULL_PACE = 10


class PagedReads:
    """Places of the tenants' reads, and the number of followers that each has."""

    def __init__(self) -> None:
        self._pages = TenantQueue(1, "pages of logs")
        self._following: Counter[TenantId] = Counter()

    def place(self, tenant_id: TenantId) -> asyncio.Semaphore:
        """Return the tenant's semaphore, to be acquired while one page is read."""
        return self._pages.semaphore(tenant_id)

    @contextmanager
    def following(self, tenant_id: TenantId) -> Iterator[None]:
        """Count one more follower of the tenant while the context is open."""
        self._following[tenant_id] += 1
        try:
            yield
        finally:
            self._following[tenant_id] -= 1
            if not self._following[tenant_id]:
                del self._following[tenant_id]

    def slowdown(self, tenant_id: TenantId) -> float:
        """Return the factor, 1 or more, by which a follower of this tenant extends its pauses."""
        return max(1.0, self._following[tenant_id] / AT_FULL_PACE)
