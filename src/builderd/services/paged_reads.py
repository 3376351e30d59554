"""Reads of logs and events, page by page: one page of each tenant at a time, and a pace for its followers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from builderd.domain.ids import TenantId
from builderd.services.tenant_queue import TenantQueue

#: Followers of one tenant that poll as often as they can. With more of them, all together poll no more often.
AT_FULL_PACE = 10


class PagedReads:
    """Places of the tenants' reads, and the number of followers that each has."""

    def __init__(self) -> None:
        self._pages = TenantQueue(1, "pages of logs")
        self._following: Counter[TenantId] = Counter()

    def place(self, tenant_id: TenantId) -> asyncio.Semaphore:
        """Return the tenant's semaphore, to be held while one page is read."""
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
