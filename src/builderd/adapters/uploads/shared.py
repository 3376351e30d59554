"""Uploads in the database, with a local folder as their cache: for services that share a database and no folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO
from weakref import WeakValueDictionary

from builderd.adapters.uploads.local import LocalUploads
from builderd.adapters.uploads.space import UploadSpace
from builderd.domain.errors import Conflict
from builderd.domain.ids import TenantId, UploadId
from builderd.store import Store, UnitOfWork
from builderd.store.stored_uploads import CHUNK_BYTES

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
        local: LocalUploads,
        most_bytes: int = 1 << 50,
        share: float = 1.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``most_bytes``: what all uploads in the database may take; it does not tell what is free on its machine.

        ``share``: part of its own and the free bytes together that one of several tenants may have.
        """
        self._store = store
        self._local = local
        self._space = UploadSpace(store, most_bytes, share)
        self._sleep = sleep
        self._locks: WeakValueDictionary[UploadId, asyncio.Lock] = WeakValueDictionary()
        #: Uploads whose file is as the database has it; any other file may be of an earlier life of this service.
        self._fetched: set[UploadId] = set()
        #: Uploads whose file begins as the database has it, if it is as long, and may have more: a put has failed.
        self._ahead: set[UploadId] = set()
        #: When each upload may store the next chunk that has little new, by ``time.monotonic``.
        self._paces: dict[UploadId, float] = {}

    async def write(self, upload: UploadId, start: int, content: AsyncIterator[bytes], limit: int) -> int:
        async with self._alone(upload):
            await self._fetch(upload)
            tenant_id, stored = await self._store.read(lambda uow: _state(uow, upload))
            copy = _Copy(tenant_id, stored, min(start, stored) // CHUNK_BYTES, cuts=start < stored)
            try:
                return await self._local.write(upload, start, self._copied(upload, copy, content), limit)
            finally:
                if copy.has_begun:
                    await self._finish(upload, copy)

    async def _copied(self, upload: UploadId, copy: _Copy, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the content, and store each whole chunk once the file has it."""
        copy.has_begun = True
        if copy.cuts:
            # As the file was, at the start of the part: a kill leaves no mixture of two attempts.
            await self._put_chunks(upload, copy, with_rest=True)
        async for piece in content:
            yield piece
            if await self._local.size(upload) >= (copy.number + 1) * CHUNK_BYTES:
                await self._put_chunks(upload, copy)

    async def _finish(self, upload: UploadId, copy: _Copy) -> None:
        """Store what is left to store, also for a request that was cut off."""
        self._fetched.discard(upload)
        self._ahead.add(upload)
        putting = asyncio.ensure_future(self._put_chunks(upload, copy, with_rest=True))
        try:
            await asyncio.shield(putting)
        except asyncio.CancelledError:
            # The next request for this upload comes after it.
            await asyncio.wait({putting})
            raise
        self._ahead.discard(upload)
        self._fetched.add(upload)

    async def _put_chunks(self, upload: UploadId, copy: _Copy, *, with_rest: bool = False) -> None:
        """Store the whole chunks of the file from the copy's on; and the rest, which may become longer."""
        with await self._local.open(upload) as file:
            file.seek(copy.number * CHUNK_BYTES)
            while len(chunk := await asyncio.to_thread(file.read, CHUNK_BYTES)) == CHUNK_BYTES:
                await self._put(upload, copy, chunk)
                copy.number += 1
        if with_rest:
            await self._put(upload, copy, chunk)

    async def _put(self, upload: UploadId, copy: _Copy, chunk: bytes) -> None:
        end = copy.number * CHUNK_BYTES + len(chunk)
        if end == copy.stored:
            return
        if len(chunk) > FREE_BYTES and (end - copy.stored) * MOST_FACTOR < len(chunk):
            await self._pace(upload)
        await self._space.put_last(upload, copy.tenant_id, copy.number, chunk)
        copy.stored = end

    async def _pace(self, upload: UploadId) -> None:
        seconds = self._paces.get(upload, 0.0) - time.monotonic()
        if seconds > 0:
            await self._sleep(seconds)
        self._paces[upload] = time.monotonic() + PACE_SECONDS

    async def _fetch(self, upload: UploadId) -> None:
        """Have the file as the database has it, and none of an upload of which that has nothing."""
        if upload in self._fetched:
            return
        size = await self._store.read(lambda uow: uow.stored_uploads.size(upload))
        if upload in self._ahead and size <= await self._local.size(upload):
            await self._local.cut(upload, size)
        else:
            await self._local.delete(upload)
            if size:
                await self._local.write(upload, 0, self._chunks(upload, size), size)
        self._ahead.discard(upload)
        self._fetched.add(upload)

    async def _chunks(self, upload: UploadId, size: int) -> AsyncIterator[bytes]:
        for number in range(-(-size // CHUNK_BYTES)):
            content = await self._store.read(partial(_chunk, upload=upload, number=number))
            yield content or b""

    async def size(self, upload: UploadId) -> int:
        if upload in self._fetched:
            return await self._local.size(upload)
        return await self._store.read(lambda uow: uow.stored_uploads.size(upload))

    async def sha256(self, upload: UploadId) -> str:
        await self._fetch_once(upload)
        return await self._local.sha256(upload)

    async def open(self, upload: UploadId) -> BinaryIO:
        await self._fetch_once(upload)
        return await self._local.open(upload)

    async def _fetch_once(self, upload: UploadId) -> None:
        if upload not in self._fetched:
            async with self._lock(upload):
                await self._fetch(upload)

    async def delete(self, upload: UploadId) -> None:
        async with self._alone(upload):
            # First: a file alone would be found and swept.
            await self._space.delete(upload)
            self._fetched.discard(upload)
            self._ahead.discard(upload)
            self._paces.pop(upload, None)
            await self._local.delete(upload)

    async def ids(self) -> Collection[UploadId]:
        stored = await self._store.read(lambda uow: uow.stored_uploads.ids())
        return {*stored, *await self._local.ids()}

    def _lock(self, upload: UploadId) -> asyncio.Lock:
        return self._locks.setdefault(upload, asyncio.Lock())

    def _alone(self, upload: UploadId) -> asyncio.Lock:
        """Return the upload's lock. Raises ``Conflict`` while another call has it."""
        lock = self._lock(upload)
        if lock.locked():
            raise Conflict("Another request is sending this upload: wait until it ends.")
        return lock


@dataclass(slots=True)
class _Copy:
    """Copy of a tenant's file into the database.

    ``stored``: bytes that the database has; ``number`` of the chunk that comes next; ``cuts``: bytes are sent again.
    """

    tenant_id: TenantId | None
    stored: int
    number: int
    cuts: bool
    has_begun: bool = False


def _chunk(uow: UnitOfWork, upload: UploadId, number: int) -> bytes | None:
    return uow.stored_uploads.chunk(upload, number)


def _state(uow: UnitOfWork, upload: UploadId) -> tuple[TenantId | None, int]:
    """Return the upload's tenant, None without a record, and the bytes that are stored of it."""
    record = uow.uploads.get(upload)
    return record.tenant_id if record else None, uow.stored_uploads.size(upload)
