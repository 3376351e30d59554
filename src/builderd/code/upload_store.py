"""Uploads: in a local folder, one file each, or in the database, for services that share it and no folder."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Collection
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO
from weakref import WeakValueDictionary

from builderd.code.store import UPLOAD_CHUNK_BYTES
from builderd.core.errors import Conflict, NoCapacity, QuotaExceeded, TooLarge
from builderd.core.ids import TenantId, UploadId, is_id
from builderd.core.resources import GB, size_text
from builderd.database.unit_of_work import Store, UnitOfWork

NO_SPACE = "This machine has no disk space for uploads now: try again later."


class _Locks:
    """Locks of the uploads that are being sent or deleted."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[UploadId, asyncio.Lock] = WeakValueDictionary()

    def alone(self, upload: UploadId) -> asyncio.Lock:
        """Return the upload's lock. Raises ``Conflict`` while another call has it."""
        lock = self._locks.setdefault(upload, asyncio.Lock())
        if lock.locked():
            raise Conflict("Another request is sending this upload: wait until it ends.")
        return lock


class LocalUploads:
    """Implements ``ports.files.Uploads``. ``floor_bytes`` of the file system stay free."""

    def __init__(self, folder: Path, floor_bytes: int = 0) -> None:
        self._folder = folder
        self._floor_bytes = floor_bytes
        self._locks = _Locks()

    async def write(self, upload: UploadId, start: int, content: AsyncIterator[bytes], limit: int) -> int:
        async with self._locks.alone(upload):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if start > (received := await self.size(upload)):
                raise gap(received)
            descriptor = os.open(self._path(upload), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                file.truncate(start)
                file.seek(start)
                end = start
                async for chunk in content:
                    end += len(chunk)
                    if end > limit:
                        raise too_large(limit)
                    await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(self._append, file, chunk)))
                return end

    def _append(self, file: BinaryIO, chunk: bytes) -> None:
        space = os.statvfs(self._folder)
        if space.f_bavail * space.f_frsize - len(chunk) < self._floor_bytes:
            raise NoCapacity(NO_SPACE, retry_after=60)
        try:
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise NoCapacity(NO_SPACE, retry_after=60) from error

    async def size(self, upload: UploadId) -> int:
        try:
            return self._path(upload).stat().st_size
        except FileNotFoundError:
            return 0

    async def sha256(self, upload: UploadId) -> str:
        def work() -> str:
            with self._opened(upload) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        return await asyncio.to_thread(work)

    async def open(self, upload: UploadId) -> BufferedReader:
        return self._opened(upload)

    def _opened(self, upload: UploadId) -> BufferedReader:
        try:
            return self._path(upload).open("rb")
        except FileNotFoundError:
            raise KeyError(upload) from None

    async def delete(self, upload: UploadId) -> None:
        async with self._locks.alone(upload):
            await asyncio.to_thread(self._path(upload).unlink, missing_ok=True)

    async def ids(self) -> Collection[UploadId]:
        if not self._folder.is_dir():
            return ()
        return [UploadId(path.name) for path in self._folder.iterdir() if is_id(path.name)]

    def _path(self, upload: UploadId) -> Path:
        if not is_id(upload):
            raise KeyError(upload)
        return self._folder / upload


def gap(received: int) -> Conflict:
    """Return the error of a part that begins behind the bytes that are there."""
    return Conflict(f"{received} bytes are received: continue from there.", data={"received": received})


def too_large(limit: int) -> TooLarge:
    return TooLarge(f"The upload is too large: the limit is {limit} bytes.")


class SharedUploads:
    """Implements ``ports.files.Uploads``. The database has what another service goes on with.

    A whole chunk is stored as soon as it has arrived, the rest when the request ends: what a kill takes is sent again.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        most_bytes: int = 1 << 50,
        share: float = 1.0,
    ) -> None:
        """``most_bytes``: what all uploads in the database may take; it does not tell what is free on its machine.

        ``share``: part of its own and the free bytes together that one of several tenants may have. ``folder``: for
        nameless files of opened uploads.
        """
        self._store = store
        self._folder = folder
        self._most_bytes = most_bytes
        self._share = share
        #: One chunk is stored at a time, so that each counts those before it.
        self._turn = asyncio.Lock()
        #: Stored bytes by tenant; None: to be read.
        self._taken: Counter[TenantId | None] | None = None
        self._locks = _Locks()

    async def write(self, upload: UploadId, start: int, content: AsyncIterator[bytes], limit: int) -> int:
        async with self._locks.alone(upload):
            stored = await self.size(upload)
            if start > stored:
                raise gap(stored)
            number, kept = divmod(start, UPLOAD_CHUNK_BYTES)
            tail = bytearray((await self._chunk(upload, number))[:kept] if kept else b"")
            # As the upload was, at the start of the part: a kill leaves no mixture of two attempts.
            if start < stored:
                await self._put(upload, number, tail)
            end = start
            try:
                async for piece in content:
                    end += len(piece)
                    if end > limit:
                        end -= len(piece)
                        raise too_large(limit)
                    tail += piece
                    while len(tail) >= UPLOAD_CHUNK_BYTES:
                        await self._put(upload, number, tail[:UPLOAD_CHUNK_BYTES])
                        del tail[:UPLOAD_CHUNK_BYTES]
                        number += 1
            finally:
                if end > start and tail:  # also of a request that was cut off
                    await self._put(upload, number, tail[:UPLOAD_CHUNK_BYTES])
            return end

    async def _put(self, upload: UploadId, number: int, chunk: bytearray) -> None:
        """Store the chunk as the upload's last one. Raises ``NoCapacity`` and ``QuotaExceeded``: nothing is done."""

        def put(uow: UnitOfWork, taken: Counter[TenantId | None]) -> tuple[TenantId | None, int]:
            record, grown = uow.uploads.get(upload), uow.stored_uploads.put_last(upload, number, bytes(chunk))
            tenant_id = record.tenant_id if record else None
            if grown > 0:
                self._check(uow, taken, tenant_id, grown)
            return tenant_id, grown

        async with self._turn:
            # Read again after a call that failed or was cut off, which may have stored its chunk: their sum looks at
            # every chunk of all tenants, some 30 ms where the database is full of them.
            taken, self._taken = self._taken, None
            if taken is None:
                taken = Counter(await self._store.read(lambda uow: uow.stored_uploads.of_tenants()))
            try:
                tenant_id, grown = await self._store.write(partial(put, taken=taken))
            except (NoCapacity, QuotaExceeded):
                self._taken = taken
                raise
            taken[tenant_id] += grown
            self._taken = taken

    def _check(self, uow: UnitOfWork, taken: Counter[TenantId | None], tenant_id: TenantId | None, grown: int) -> None:
        """Raise when an upload that grows by so many bytes leaves too few for others."""
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
        for number in range(-(-size // UPLOAD_CHUNK_BYTES)):
            yield await self._chunk(upload, number)

    async def _chunk(self, upload: UploadId, number: int) -> bytes:
        return await self._store.read(lambda uow: uow.stored_uploads.chunk(upload, number)) or b""

    async def delete(self, upload: UploadId) -> None:
        async with self._locks.alone(upload), self._turn:
            self._taken = None
            await self._store.write(lambda uow: uow.stored_uploads.delete(upload))

    async def ids(self) -> Collection[UploadId]:
        return await self._store.read(lambda uow: uow.stored_uploads.ids())
