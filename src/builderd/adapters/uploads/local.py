"""Uploads in a local folder: one file each, named by its id."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from builderd.domain.errors import Conflict, NoCapacity, TooLarge
from builderd.domain.ids import UploadId, is_id

NO_SPACE = "This machine has no disk space for uploads now: try again later."


class LocalUploads:
    """Implements ``ports.uploads.Uploads``. ``floor_bytes`` of the file system stay free."""

    def __init__(self, folder: Path, floor_bytes: int = 0) -> None:
        self._folder = folder
        self._floor_bytes = floor_bytes

    async def write(self, upload: UploadId, start: int, content: AsyncIterator[bytes], limit: int) -> int:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked(upload, os.O_CREAT) as file:
            received = os.fstat(file.fileno()).st_size
            if start > received:
                raise gap(received)
            os.ftruncate(file.fileno(), start)
            file.seek(start)
            end = start
            async for chunk in content:
                end += len(chunk)
                if end > limit:
                    raise too_large(limit)
                await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(self._append, file, chunk)))
            return end

    @contextmanager
    def _locked(self, upload: UploadId, flags: int = 0) -> Iterator[BinaryIO]:
        """Open and lock the file. Raises ``Conflict`` while another request, of any process, has it."""
        while True:
            descriptor = os.open(self._path(upload), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise Conflict("Another request is sending this upload: wait until it ends.") from None
                # Deleted between open and lock, the file has no name any more: another one may have it.
                if os.fstat(descriptor).st_nlink:
                    yield file
                    return

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
        def work() -> None:
            with suppress(FileNotFoundError), self._locked(upload):
                self._path(upload).unlink()

        await asyncio.to_thread(work)

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
