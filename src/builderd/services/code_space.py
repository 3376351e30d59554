"""Space for stored code: what all bundles may take together, and one tenant's share of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial

from builderd.domain.bundles import Bundle
from builderd.domain.errors import NoCapacity
from builderd.domain.ids import TenantId
from builderd.domain.resources import GB
from builderd.ports.bundles import Bundles
from builderd.ports.store import Store, UnitOfWork

#: Part of its own code and the free space together that one tenant's code may take: others always find some.
SHARE = 0.5
RETRY_SECONDS = 60


class CodeSpace:
    """Bytes of bundles that are being stored, in the memory of this process, by tenant."""

    def __init__(self) -> None:
        self._reserved: Counter[TenantId] = Counter()

    @asynccontextmanager
    async def reserved(
        self, bundles: Bundles, store: Store, tenant_id: TenantId, bundle: Bundle
    ) -> AsyncIterator[None]:
        """Reserve the space of a bundle that is stored in the block. Raises ``NoCapacity`` when there is none.

        A bundle that is stored already takes none, and counts in full for each tenant that has it.
        """
        size = bundle.packed_size
        # Before the first look: calls of one tenant that look at the same time count each other.
        self._reserved[tenant_id] += size
        try:
            await self._check(bundles, store, tenant_id, bundle)
            yield
        finally:
            self._reserved[tenant_id] -= size
            if not self._reserved[tenant_id]:
                del self._reserved[tenant_id]

    async def _check(self, bundles: Bundles, store: Store, tenant_id: TenantId, bundle: Bundle) -> None:
        space, ahead, size = await bundles.space(), self._reserved.total(), bundle.packed_size
        # Whatever a tenant has, it is within its share then.
        if space.used + ahead <= SHARE * (space.used + space.free):
            return
        hashes = await store.read(partial(_bundles_of, tenant_id=tenant_id))
        is_stored = await bundles.stored_bytes([bundle.hash]) > 0
        if is_stored and bundle.hash in hashes:
            return
        if not is_stored and ahead > space.free:
            raise NoCapacity(
                f"There is no room for {_gb(size)} of code: {_gb(space.free)} are left for the code "
                f"of all builders. {space.remedy}",
                retry_after=RETRY_SECONDS,
            )
        stored = await bundles.stored_bytes(hashes)
        more = await bundles.stored_bytes([bundle.hash]) if is_stored else self._reserved[tenant_id]
        if stored + more > SHARE * (stored + space.free):
            raise NoCapacity(
                f"Your builders have {_gb(stored)} of stored code, and {_gb(space.free)} are free: one tenant's code "
                f"takes at most {SHARE:.0%} of both together. Delete builders or backups that you do not need, or keep "
                f"less in the code. {space.remedy}",
                retry_after=RETRY_SECONDS,
            )


def _bundles_of(uow: UnitOfWork, tenant_id: TenantId) -> Collection[str]:
    return uow.versions.bundles_of_tenant(tenant_id)


def _gb(size: float) -> str:
    return f"{max(size, 0) / GB:.2f} GB"
