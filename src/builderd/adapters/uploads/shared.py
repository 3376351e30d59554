"""Uploads in the database, for services that share a database and no folder."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO
from weakref import WeakValueDictionary

from builderd.adapters.uploads.local import gap, too_large
from builderd.domain.errors import Conflict, NoCapacity, QuotaExceeded
from builderd.domain.ids import TenantId, UploadId
from builderd.domain.resources import GB, size_text
from builderd.store import Store, UnitOfWork
from builderd.store.uploads import CHUNK_BYTES

#: A chunk of more than ``FREE_BYTES`` costs the database much more than the client if less than one byte in
#: ``MOST_FACTOR`` is new: each upload stores one such in ``PACE_SECONDS``, and waits otherwise.
FREE_BYTES, MOST_FACTOR, PACE_SECONDS = 1 << 12, 16, 1.0


class SharedUploads:
    """Implements ``ports.uploads.Uploads``. The database has what another service goes on with.

    A whole chunk is stored as soon as it has arrived, the rest when the request ends: what a kill takes is sent again.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        most_bytes: int = 1 << 50,
        share: float = 1.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``most_bytes``: what all uploads in the database may take; it does not tell what is free on its machine.

        ``share``: part of its own and the free bytes together that one of several tenants may have. ``folder``: for
        nameless files of opened uploads.
        """
        self._store = store
        self._folder = folder
        self._space = UploadSpace(store, most_bytes, share)
        self._sleep = sleep
        self._locks: WeakValueDictionary[UploadId, asyncio.Lock] = WeakValueDictionary()
        #: When each upload may store the next chunk that has little new, by ``time.monotonic``.
        self._paces: dict[UploadId, float] = {}

    async def write(self, upload: UploadId, start: int, content: AsyncIterator[bytes], limit: int) -> int:
        async with self._alone(upload):
            tenant_id, stored = await self._store.read(lambda uow: _state(uow, upload))
            if start > stored:
                raise gap(stored)
            number, kept = divmod(start, CHUNK_BYTES)
            before = await self._store.read(partial(_chunk, upload=upload, number=number)) if kept else b""
            tail = _Tail(tenant_id, stored, number, bytearray((before or b"")[:kept]))
            # As the upload was, at the start of the part: a kill leaves no mixture of two attempts.
            await self._put(upload, tail, bytes(tail.content))
            try:
                async for piece in content:
                    if tail.end + len(piece) > limit:
                        raise too_large(limit)
                    tail.content += piece
                    await self._put_whole(upload, tail)
            finally:
                await self._finish(upload, tail)
            return tail.end

    async def _finish(self, upload: UploadId, tail: _Tail) -> None:
        """Store what is left to store, also for a request that was cut off."""

        async def put_rest() -> None:
            await self._put_whole(upload, tail)
            await self._put(upload, tail, bytes(tail.content))

        putting = asyncio.ensure_future(put_rest())
        try:
            await asyncio.shield(putting)
        except asyncio.CancelledError:
            # The next request for this upload comes after it.
            await asyncio.wait({putting})
            raise

    async def _put_whole(self, upload: UploadId, tail: _Tail) -> None:
        while len(tail.content) >= CHUNK_BYTES:
            await self._put(upload, tail, bytes(tail.content[:CHUNK_BYTES]))
            del tail.content[:CHUNK_BYTES]
            tail.number += 1

    async def _put(self, upload: UploadId, tail: _Tail, chunk: bytes) -> None:
        """Store the chunk as the upload's last one."""
        end = tail.number * CHUNK_BYTES + len(chunk)
        if end == tail.stored:
            return
        if len(chunk) > FREE_BYTES and (end - tail.stored) * MOST_FACTOR < len(chunk):
            seconds = self._paces.get(upload, 0.0) - time.monotonic()
            if seconds > 0:
                await self._sleep(seconds)
            self._paces[upload] = time.monotonic() + PACE_SECONDS
        await self._space.put_last(upload, tail.tenant_id, tail.number, chunk)
        tail.stored = end

    async def size(self, upload: UploadId) -> int:
        return await self._store.read(lambda uow: uow.stored_uploads.size(upload))

    async def sha256(self, upload: UploadId) -> str:
        digest = hashlib.sha256()
        async for chunk in self._chunks(upload):
            await asyncio.to_thread(digest.update, chunk)
        return digest.hexdigest()

    async def open(self, upload: UploadId) -> BinaryIO:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.fdopen(os.open(self._folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600), "w+b")
        try:
            async for chunk in self._chunks(upload):
                await asyncio.to_thread(file.write, chunk)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    async def _chunks(self, upload: UploadId) -> AsyncIterator[bytes]:
        """Yield the upload's chunks. Raises ``KeyError`` when there is nothing."""
        size = await self.size(upload)
        if not size:
            raise KeyError(upload)
        for number in range(-(-size // CHUNK_BYTES)):
            content = await self._store.read(partial(_chunk, upload=upload, number=number))
            yield content or b""

    async def delete(self, upload: UploadId) -> None:
        async with self._alone(upload):
            await self._space.delete(upload)
            self._paces.pop(upload, None)

    async def ids(self) -> Collection[UploadId]:
        return await self._store.read(lambda uow: uow.stored_uploads.ids())

    def _alone(self, upload: UploadId) -> asyncio.Lock:
        """Return the upload's lock. Raises ``Conflict`` while another call has it."""
        lock = self._locks.setdefault(upload, asyncio.Lock())
        if lock.locked():
            raise Conflict("Another request is sending this upload: wait until it ends.")
        return lock


@dataclass(slots=True)
class _Tail:
    """End of an upload while it is sent. ``stored``: bytes that the database has of all of it.

    ``content``: bytes that have arrived, from the beginning of chunk ``number`` on.
    """

    tenant_id: TenantId | None
    stored: int
    number: int
    content: bytearray

    @property
    def end(self) -> int:
        return self.number * CHUNK_BYTES + len(self.content)


def _chunk(uow: UnitOfWork, upload: UploadId, number: int) -> bytes | None:
    return uow.stored_uploads.chunk(upload, number)


def _state(uow: UnitOfWork, upload: UploadId) -> tuple[TenantId | None, int]:
    """Return the upload's tenant, None without a record, and the bytes that are stored of it."""
    record = uow.uploads.get(upload)
    return record.tenant_id if record else None, uow.stored_uploads.size(upload)


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
