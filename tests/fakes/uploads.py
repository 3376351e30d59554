"""Uploads in memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator, Collection
from typing import BinaryIO

from builderd.core.errors import Conflict, TooLarge
from builderd.core.ids import UploadId


class FakeUploads:
    def __init__(self) -> None:
        self.stored: dict[UploadId, bytes] = {}
        self._writing: set[UploadId] = set()

    async def write(self, upload: UploadId, start: int, content: AsyncIterator[bytes], limit: int) -> int:
        self._check_free(upload)
        self._writing.add(upload)
        try:
            there = self.stored.setdefault(upload, b"")
            if start > len(there):
                raise Conflict(f"{len(there)} bytes are received: continue from there.", data={"received": len(there)})
            self.stored[upload] = there[:start]
            async for piece in content:
                if len(self.stored[upload]) + len(piece) > limit:
                    raise TooLarge(f"The upload is too large: the limit is {limit} bytes.")
                self.stored[upload] += piece
            return len(self.stored[upload])
        finally:
            self._writing.discard(upload)

    def _check_free(self, upload: UploadId) -> None:
        if upload in self._writing:
            raise Conflict("Another request sends this upload: wait until it has ended.")

    async def size(self, upload: UploadId) -> int:
        return len(self.stored.get(upload, b""))

    async def sha256(self, upload: UploadId) -> str:
        return hashlib.sha256(self.stored[upload]).hexdigest()

    async def open(self, upload: UploadId) -> BinaryIO:
        return io.BytesIO(self.stored[upload])

    async def delete(self, upload: UploadId) -> None:
        self._check_free(upload)
        self.stored.pop(upload, None)

    async def ids(self) -> Collection[UploadId]:
        return list(self.stored)
