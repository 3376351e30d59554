"""Where uploads lie until they are deployed, piece by piece as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import BinaryIO, Protocol

from builderd.domain.ids import UploadId


class Uploads(Protocol):
    async def write(self, upload: UploadId, start: int, content: AsyncIterator[bytes], limit: int) -> int:
        """Go on from a byte that is there already, or is the next one; how many there are then.

        What comes is kept as it comes, whatever breaks off. Raises ``TooLarge`` past so many bytes in all, ``Conflict``
        while another one writes or where bytes before ``start`` are missing, ``NoCapacity``, and what ``content``
        raises.
        """

    async def size(self, upload: UploadId) -> int:
        """How many bytes are there; 0 when there is nothing."""

    async def sha256(self, upload: UploadId) -> str:
        """Of all that is there, as 64 hex characters. Raises ``KeyError`` when there is nothing."""

    def open(self, upload: UploadId) -> BinaryIO:
        """To be read. Raises ``KeyError`` when there is nothing."""

    async def delete(self, upload: UploadId) -> None:
        """Idempotent. Raises ``Conflict`` while somebody writes."""

    async def ids(self) -> Collection[UploadId]:
        """Of all that are there."""
