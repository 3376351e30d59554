"""The upload store: keeps uploads until they are deployed, written piece by piece as they arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import BinaryIO, Protocol

from builderd.domain.ids import UploadId


class Uploads(Protocol):
    async def write(self, upload: UploadId, start: int, content: AsyncIterator[bytes], limit: int) -> int:
        """Write from byte ``start``, at most the next missing one; return how many bytes are stored then.

        Bytes that arrived are kept when the rest breaks off. Raises ``TooLarge`` past ``limit`` bytes in all,
        ``Conflict`` during another write or where bytes before ``start`` are missing, ``NoCapacity``, and the errors
        of ``content``.
        """

    async def size(self, upload: UploadId) -> int:
        """Return how many bytes are stored; 0 when there is nothing."""

    async def sha256(self, upload: UploadId) -> str:
        """Return the SHA-256 of all stored bytes, as 64 hex characters. Raises ``KeyError`` when there is nothing."""

    async def open(self, upload: UploadId) -> BinaryIO:
        """Open the stored bytes for reading. Raises ``KeyError`` when there is nothing."""

    async def delete(self, upload: UploadId) -> None:
        """Delete the upload. Idempotent. Raises ``Conflict`` during a write."""

    async def ids(self) -> Collection[UploadId]:
        """Return the ids of all stored uploads."""
