"""Space for uploads in the database: what all of them may take together, and one tenant's share of it."""

from __future__ import annotations

import asyncio
from collections import Counter

from builderd.domain.errors import NoCapacity, QuotaExceeded
from builderd.domain.ids import TenantId, UploadId
from builderd.domain.resources import GB, size_text
from builderd.store import Store, UnitOfWork


class UploadSpace:
    """Stores and deletes chunks within the limits, one call after the other: each counts those before it.

    So uploads take one of the database's writers at a time, however many there are.
    """

    def __init__(self, store: Store, most_bytes: int, share: float) -> None:
        """``share``: part of its own bytes and the free ones together that one of several tenants may have."""
        self._store = store
        self._most_bytes = most_bytes
        self._share = share
        self._turn = asyncio.Lock()
        #: Stored bytes by tenant; None: to be read.
        self._taken: Counter[TenantId | None] | None = None

    async def put_last(self, upload: UploadId, tenant_id: TenantId | None, number: int, chunk: bytes) -> None:
        """Store a chunk, as ``StoredUploads.put_last``. Raises ``NoCapacity`` and ``QuotaExceeded``: nothing is done.

        ``tenant_id``: None for an upload without a record.
        """
        async with self._turn:
            taken = self._taken
            if taken is None:
                taken = Counter(await self._store.read(lambda uow: uow.stored_uploads.of_tenants()))
            # Not known again until the end: a call that is cancelled or fails may have stored it.
            self._taken = None

            def put(uow: UnitOfWork) -> int:
                grown = uow.stored_uploads.put_last(upload, number, chunk)
                if grown > 0:
                    self._check(uow, taken, tenant_id, grown)
                return grown

            try:
                taken[tenant_id] += await self._store.write(put)
            except (NoCapacity, QuotaExceeded):
                self._taken = taken
                raise
            self._taken = taken

    def _check(self, uow: UnitOfWork, taken: Counter[TenantId | None], tenant_id: TenantId | None, grown: int) -> None:
        own, free = taken[tenant_id], self._most_bytes - taken.total()
        if grown > free:
            raise NoCapacity(
                f"The database keeps {self._most_bytes / GB:.1f} GB of uploads at most, and is full of them: try "
                "again later. Its operator can raise limits.stored_code.",
                retry_after=60,
            )
        if own + grown > self._share * (own + free) and uow.tenants.are_several():
            raise QuotaExceeded(
                f"Your uploads have {size_text(own)}, and {size_text(free)} are free: one tenant's uploads may have "
                f"{self._share:.0%} of their own and the free space together. Delete those that you have deployed, or "
                "try again later; the operator sets the share (limits.code_share) and the space (limits.stored_code)."
            )

    async def delete(self, upload: UploadId) -> None:
        async with self._turn:
            self._taken = None
            await self._store.write(lambda uow: uow.stored_uploads.delete(upload))
