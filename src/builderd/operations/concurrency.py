"""Concurrency limits: things of one kind that a tenant may have at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from builderd.domain.errors import RateLimited
from builderd.domain.ids import TenantId


class ConcurrencyLimit:
    """Limit of ``maximum`` for each tenant, counted in the memory of this process.

    ``too_many`` follows the limit in the error message: what they are, and what to do.
    """

    def __init__(self, maximum: int, too_many: str) -> None:
        self.maximum = maximum
        self._too_many = too_many
        self._open: Counter[TenantId] = Counter()

    def admit(self, tenant_id: TenantId) -> None:
        """Raise ``RateLimited`` when the tenant has ``maximum`` of them already."""
        if self._open[tenant_id] >= self.maximum:
            raise RateLimited(f"{self.maximum} {self._too_many}", retry_after=10)

    @contextmanager
    def hold(self, tenant_id: TenantId) -> Iterator[None]:
        """Count one more of the tenant while the context is open."""
        self._open[tenant_id] += 1
        try:
            yield
        finally:
            self._open[tenant_id] -= 1
            if not self._open[tenant_id]:
                del self._open[tenant_id]

    @contextmanager
    def acquire(self, tenant_id: TenantId) -> Iterator[None]:
        """Count one more of the tenant while the context is open. Raises ``RateLimited`` for one too many."""
        self.admit(tenant_id)
        with self.hold(tenant_id):
            yield

    def total(self) -> int:
        """Return the number of them of all tenants."""
        return self._open.total()
