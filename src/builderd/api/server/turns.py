"""Turns on the event loop: each tenant encodes one piece of its large answers at a time, however many it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from builderd.domain.ids import TenantId


class Turns:
    """One turn of each tenant in every iteration of the event loop."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[TenantId, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, tenant_id: TenantId) -> AsyncIterator[None]:
        """Wait for a turn; the next call of the tenant has its turn after other work of the loop."""
        lock = self._locks.get(tenant_id)
        if lock is None:
            lock = self._locks[tenant_id] = asyncio.Lock()
        async with lock:
            yield
            await asyncio.sleep(0)
