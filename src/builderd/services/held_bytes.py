"""Memory budget of each tenant: bytes that its calls hold in the service, such as unsent command output.

A call that needs more than the budget has left waits. One call of each tenant may exceed the budget until it is done,
so that calls never deadlock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from builderd.domain.ids import TenantId

#: The budget of one tenant, in bytes.
LIMIT = 64_000_000


class HeldBytes:
    """Memory budgets of all tenants, in the memory of this process."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._accounts: dict[TenantId, _Account] = {}

    @contextmanager
    def holding(self, tenant_id: TenantId) -> Iterator[Holding]:
        """Return an empty holding of this tenant; its bytes are released at the end of the context."""
        account = self._accounts.setdefault(tenant_id, _Account(self._limit))
        holding = Holding(account)
        account.holdings += 1
        try:
            yield holding
        finally:
            holding.close()
            account.holdings -= 1
            if not account.holdings:
                del self._accounts[tenant_id]

    def held(self, tenant_id: TenantId) -> int:
        """Return the number of bytes that this tenant's calls hold now."""
        account = self._accounts.get(tenant_id)
        return account.held if account else 0


@dataclass(slots=True)
class _Account:
    limit: int
    held: int = 0
    holdings: int = 0
    #: The one holding that may exceed the limit.
    exempt: Holding | None = None
    #: Set, and replaced, whenever bytes are released.
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def fits(self, size: int) -> bool:
        return self.held + size <= self.limit

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Holding:
    """Bytes that one call holds in its tenant's budget."""

    def __init__(self, account: _Account) -> None:
        self._account = account
        self._size = 0

    async def take(self, size: int) -> None:
        """Count ``size`` more bytes; wait until the tenant's budget has room for them."""
        while not self.try_reserve(size):
            await self._account.changed.wait()

    def try_reserve(self, size: int) -> bool:
        """Count ``size`` more bytes if there is room; return True if there was."""
        account = self._account
        if not account.fits(size):
            if account.exempt not in (None, self):
                return False
            account.exempt = self
        account.held += size
        self._size += size
        return True

    def release(self, size: int) -> None:
        """Count ``size`` fewer bytes."""
        self._account.held -= size
        self._size -= size
        self._account.notify()

    def close(self) -> None:
        """Release all bytes."""
        if self._account.exempt is self:
            self._account.exempt = None
        self.release(self._size)
