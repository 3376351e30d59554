"""Uploads in the database, with a local folder as their cache: for services that share a database and no folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO
from weakref import WeakValueDictionary

from builderd.adapters.uploads.local import LocalUploads
from builderd.domain.errors import Conflict, NoCapacity
from builderd.domain.ids import UploadId
from builderd.domain.resources import GB
from builderd.ports.store import Store, UnitOfWork
from builderd.ports.store.stored_uploads import CHUNK_BYTES


class SharedUploads:
    """Implements ``ports.uploads.Uploads``. The database has what another service goes on with.

    A whole chunk is stored as soon as it has arrived, the rest when the request ends: what a kill takes is sent again.
    """

    def __init__(self, store: Store, local: LocalUploads, most_bytes: int = 1 << 50) -> None:
        """``most_bytes``: what all uploads in the database may take; it does not tell what is free on its machine."""
        self._store = store
        self._local = local
        self._most_bytes = most_bytes
        self._locks: WeakValueDictionary[UploadId, asyncio.Lock] = WeakValueDictionary()
        #: Uploads whose file is as the database has it; any other file may be of an earlier life of this service.
        self._fetched: set[UploadId] = set()
        #: Bytes of all uploads in the database; None: to be read.
        self._total: int | None = None

    async def write(self, upload: UploadId, start: int, content: AsyncIterator[bytes], limit: int) -> int:
        async with self._alone(upload):
            await self._fetch(upload)
            stored = await self._store.read(lambda uow: uow.stored_uploads.size(upload))
            copy = _Copy(min(start, stored) // CHUNK_BYTES, cuts=start < stored)
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
        await asyncio.shield(self._put_chunks(upload, copy, with_rest=True))
        self._fetched.add(upload)

    async def _put_chunks(self, upload: UploadId, copy: _Copy, *, with_rest: bool = False) -> None:
        """Store the whole chunks of the file from the copy's on; and the rest, which may become longer."""
        with await self._local.open(upload) as file:
            file.seek(copy.number * CHUNK_BYTES)
            while len(chunk := await asyncio.to_thread(file.read, CHUNK_BYTES)) == CHUNK_BYTES:
                await self._put(upload, copy.number, chunk)
                copy.number += 1
        if with_rest:
            await self._put(upload, copy.number, chunk)

    async def _put(self, upload: UploadId, number: int, chunk: bytes) -> None:
        if self._total is None:
            self._total = await self._store.read(lambda uow: uow.stored_uploads.total())
        room = self._most_bytes - self._total

        def put(uow: UnitOfWork) -> int:
            grown = uow.stored_uploads.put_last(upload, number, chunk)
            if grown > max(room, 0):
                raise NoCapacity(
                    f"The database keeps {self._most_bytes / GB:.1f} GB of uploads at most, and is full of them: try "
                    "again later. Its operator can raise limits.stored_code.",
                    retry_after=60,
                )
            return grown

        self._total += await self._store.write(put)

    async def _fetch(self, upload: UploadId) -> None:
        """Have the file as the database has it. A file of which that has nothing is of a release that kept none."""
        if upload in self._fetched:
            return
        size = await self._store.read(lambda uow: uow.stored_uploads.size(upload))
        if size:
            await self._local.delete(upload)
            await self._local.write(upload, 0, self._chunks(upload, size), size)
        self._fetched.add(upload)

    async def _chunks(self, upload: UploadId, size: int) -> AsyncIterator[bytes]:
        for number in range(-(-size // CHUNK_BYTES)):
            content = await self._store.read(partial(_chunk, upload=upload, number=number))
            yield content or b""

    async def size(self, upload: UploadId) -> int:
        if upload not in self._fetched:
            stored = await self._store.read(lambda uow: uow.stored_uploads.size(upload))
            if stored:
                return stored
        return await self._local.size(upload)

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
            await self._store.write(lambda uow: uow.stored_uploads.delete(upload))
            self._total = None
            self._fetched.discard(upload)
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
    """Copy of a file into the database: the number of the chunk that comes next; ``cuts``: bytes are sent again."""

    number: int
    cuts: bool
    has_begun: bool = False


def _chunk(uow: UnitOfWork, upload: UploadId, number: int) -> bytes | None:
    return uow.stored_uploads.chunk(upload, number)
