"""Fair queue: items of several tenants, taken from each tenant in turn."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import Generic, TypeVar

from builderd.domain.ids import TenantId

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Queue with at most ``most`` items of each tenant; the tenant that was served last comes last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: OrderedDict[TenantId, deque[T]] = OrderedDict()
        self._filled = asyncio.Event()

    def put(self, tenant_id: TenantId, item: T) -> bool:
        """Add the item; return False when the tenant has as many as it may have."""
        waiting = self._waiting.setdefault(tenant_id, deque())
        if len(waiting) >= self._most:
            return False
        waiting.append(item)
        self._filled.set()
        return True

    async def get(self) -> T:
        """Return the oldest item of the tenant that has waited longest; wait for one."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        tenant_id, waiting = self._waiting.popitem(last=False)
        item = waiting.popleft()
        if waiting:
            self._waiting[tenant_id] = waiting
        return item
