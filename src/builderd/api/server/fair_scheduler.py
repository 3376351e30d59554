"""Fair sharing of the event loop: each tenant encodes one piece of its large answers at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from builderd.domain.ids import TenantId


class FairScheduler:
    """Scheduler that lets each tenant encode one piece in every iteration of the event loop."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[TenantId, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def acquire(self, tenant_id: TenantId) -> AsyncIterator[None]:
        """Wait for the tenant's turn to encode; the tenant's next piece follows after other work of the event loop."""
        lock = self._locks.get(tenant_id)
        if lock is None:
            lock = self._locks[tenant_id] = asyncio.Lock()
        async with lock:
            yield
            await asyncio.sleep(0)
